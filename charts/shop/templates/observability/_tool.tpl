{{/*
One of the exporters or of the bundled stack: a Deployment, and a Service if others reach it.
(list $ NAME VALUES MORE), where MORE has `uid`, `args`, `ports` by name, those for others in `serves`, the
path and port of its `probe`, `env`, `mounts` and `volumes` as text, `config` that a change of rolls its pod,
`annotations` of the pod, and the name of its service `account` if it asks the cluster's API.
*/}}
{{- define "shop.tool" -}}
{{- $ := index . 0 -}}{{- $name := index . 1 -}}{{- $values := index . 2 -}}{{- $more := index . 3 -}}
{{- $annotations := merge (dict) ($more.annotations | default dict) ($.Values.commonAnnotations | default dict) -}}
{{- with $more.config }}{{ $_ := set $annotations "checksum/config" (sha256sum . | trunc 16) }}{{ end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "shop.metadata" (list $ $name (printf "%s-%s" (include "shop.fullname" $) $name)) | nindent 2 }}
spec:
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "shop.selectorLabels" (list $ $name) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "shop.labels" (list $ $name) | nindent 8 }}
      {{- with $annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "shop.pullSecrets" $ | nindent 6 }}
      {{- with $more.account }}
      serviceAccountName: {{ . }}
      {{- end }}
      automountServiceAccountToken: {{ hasKey $more "account" }}
      enableServiceLinks: false
      securityContext:
        {{- include "shop.podSecurity" (list $more.uid) | nindent 8 }}
      {{- include "shop.placement" (list $.Values.defaults) | nindent 6 }}
      containers:
        - name: {{ $name }}
          image: {{ include "shop.image" (list $ $values.image $values.image.repository $values.image.tag $values.image.digest) }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          {{- with $more.args }}
          args:
            {{- range . }}
            - {{ . | quote }}
            {{- end }}
          {{- end }}
          {{- with $more.env }}
          env:
            {{- . | nindent 12 }}
          {{- end }}
          ports:
            {{- range $port, $number := $more.ports }}
            - {name: {{ $port }}, containerPort: {{ $number }}}
            {{- end }}
          startupProbe:
            httpGet: {{ toJson $more.probe }}
            periodSeconds: 2
            timeoutSeconds: 3
            failureThreshold: 60
          readinessProbe:
            httpGet: {{ toJson $more.probe }}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          livenessProbe:
            httpGet: {{ toJson $more.probe }}
            periodSeconds: 30
            timeoutSeconds: 10
            failureThreshold: 6
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          securityContext:
            {{- include "shop.containerSecurity" $ | nindent 12 }}
          {{- with $more.mounts }}
          volumeMounts:
            {{- . | nindent 12 }}
          {{- end }}
      {{- with $more.volumes }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
{{- with $more.serves }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "shop.metadata" (list $ $name (printf "%s-%s" (include "shop.fullname" $) $name)) | nindent 2 }}
spec:
  selector:
    {{- include "shop.selectorLabels" (list $ $name) | nindent 4 }}
  ports:
    {{- range . }}
    - {name: {{ . }}, port: {{ index $more.ports . }}, targetPort: {{ . }}}
    {{- end }}
{{- end }}
{{- end -}}

{{/* A ConfigMap: (list $ NAME FILES-BY-NAME) */}}
{{- define "shop.config" -}}
{{- $ := index . 0 -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "shop.metadata" (list $ (index . 1) (printf "%s-%s" (include "shop.fullname" $) (index . 1))) | nindent 2 }}
data:
  {{- range $name, $text := index . 2 }}
  {{ $name }}: |
    {{- $text | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* The alerts as a rule file, and as a PrometheusRule has them: without those that values leave out. */}}
{{- define "shop.alerts" -}}
{{- $groups := list -}}{{- $seen := list -}}{{- $alerts := .Values.alerts -}}
{{- range (.Files.Get "files/alerts.yaml" | fromYaml).groups -}}
{{- $rules := list -}}
{{- range .rules -}}
{{- $seen = append $seen .alert -}}
{{- if not (has .alert $alerts.exclude) -}}
{{- $_ := set . "labels" (merge (dict) .labels $alerts.extraLabels) -}}
{{- $_ := set .annotations "runbook_url" (print $alerts.runbooks .annotations.runbook_url) -}}
{{- $rules = append $rules . -}}
{{- end -}}
{{- end -}}
{{- if $rules }}{{ $groups = append $groups (dict "name" .name "rules" $rules) }}{{ end -}}
{{- end -}}
{{- range $alerts.exclude }}{{ if not (has . $seen) }}{{ fail (printf "alerts.exclude: there is no alert %s." .) }}{{ end }}{{ end -}}
{{- toYaml (dict "groups" $groups) -}}
{{- end -}}
