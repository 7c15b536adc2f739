{{/*
One of the exporters or of the bundled stack: a Deployment, and a Service if others reach it.
(list $ NAME VALUES MORE), where MORE has `uid`, `args`, `ports` by name, those for others in `serves`, the
path and port of its `probe`, `env`, `mounts` and `volumes` as text, `config` that a change of rolls its pod,
`annotations` of the pod, and the name of its service `account` if it asks the cluster's API.
*/}}
{{- define "shop.tool" -}}
{{- $ := index . 0 -}}{{- $name := index . 1 -}}{{- $values := index . 2 -}}{{- $more := index . 3 -}}
{{- $extra := $values.extra -}}
{{- $annotations := merge (dict) ($more.annotations | default dict) (include "shop.commonAnnotations" $ | fromYaml) -}}
{{- with $more.config }}{{ $_ := set $annotations "checksum/config" (sha256sum . | trunc 16) }}{{ end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "shop.metadata" (list $ $name (include "shop.name" (list $ $name))) | nindent 2 }}
spec:
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "shop.selectorLabels" (list $ $name) | nindent 6 }}
  template:
    metadata:
      {{- include "shop.podMetadata" (list $extra (include "shop.labels" (list $ $name) | fromYaml) $annotations) | nindent 6 }}
    spec:
      {{- $pod := dict "root" $ "extra" $extra "uid" $more.uid "where" $.Values.defaults }}
      {{- with $more.account }}{{ $_ := set $pod "account" . }}{{ end }}
      {{- include "shop.pod" $pod | nindent 6 }}
      {{- include "shop.lists" (list "initContainers" $extra.initContainers) | nindent 6 }}
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
          {{- include "shop.lists" (list "env" ($more.env | default "") $extra.env) | nindent 10 }}
          {{- include "shop.lists" (list "envFrom" $extra.envFrom) | nindent 10 }}
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
          {{- include "shop.security" (list $extra) | nindent 10 }}
          {{- include "shop.lists" (list "volumeMounts" ($more.mounts | default "") $extra.volumeMounts) | nindent 10 }}
        {{- with $extra.containers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- include "shop.lists" (list "volumes" ($more.volumes | default "") $extra.volumes) | nindent 6 }}
{{- with $more.serves }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "shop.metadata" (list $ $name (include "shop.name" (list $ $name))) | nindent 2 }}
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
  {{- include "shop.metadata" (list $ (index . 1) (include "shop.name" (list $ (index . 1)))) | nindent 2 }}
data:
  {{- range $name, $text := index . 2 }}
  {{ $name }}: |
    {{- $text | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* A dashboard's id, one of this release's own: (list $ NAME). Grafana takes 40 characters. */}}
{{- define "shop.board.uid" -}}
{{- $ := index . 0 -}}
{{- include "shop.cut" (list (printf "%s-%s-%s" $.Release.Namespace (include "shop.fullname" $) (index . 1)) 40) -}}
{{- end -}}

{{/* A dashboard with this release's id, and with the address of its runbooks: (list $ PATH) */}}
{{- define "shop.board" -}}
{{- $ := index . 0 -}}{{- $name := base (index . 1) | trimSuffix ".json" -}}
{{- $uid := include "shop.board.uid" (list $ $name) -}}
{{- $text := $.Files.Get (index . 1) | replace (printf "\"uid\": \"shop-%s\"" $name) (printf "\"uid\": %q" $uid) -}}
{{- $text | replace "\"query\": \"RUNBOOKS\"" (printf "\"query\": %q" $.Values.alerts.runbooks) -}}
{{- end -}}

{{/* The alerts as a rule file, and as a PrometheusRule has them: of this release, without those that values leave out. */}}
{{- define "shop.alerts" -}}
{{- $groups := list -}}{{- $seen := list -}}{{- $alerts := .Values.alerts -}}
{{- range (.Files.Get "files/alerts.yaml" | fromYaml).groups -}}
{{- $rules := list -}}
{{- range .rules -}}
{{- $_ := set . "expr" (replace "namespace=~\".*\"" (printf "namespace=%q" $.Release.Namespace) .expr) -}}
{{- if .record -}}
{{- $rules = append $rules . -}}
{{- else -}}
{{- $seen = append $seen .alert -}}
{{- if not (has .alert $alerts.exclude) -}}
{{- $_ := set . "labels" (merge (dict) .labels $alerts.extraLabels) -}}
{{- $_ := set .annotations "runbook_url" (print $alerts.runbooks .annotations.runbook_url) -}}
{{- $_ := set .annotations "dashboard_url" (print "/d/" (include "shop.board.uid" (list $ (trimPrefix "/d/shop-" .annotations.dashboard_url)))) -}}
{{- $rules = append $rules . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $rules }}{{ $groups = append $groups (dict "name" .name "rules" $rules) }}{{ end -}}
{{- end -}}
{{- range $alerts.exclude }}{{ if not (has . $seen) }}{{ fail (printf "alerts.exclude: there is no alert %s." .) }}{{ end }}{{ end -}}
{{- toYaml (dict "groups" $groups) -}}
{{- end -}}
