{{/* Names: RELEASE-COMPONENT. A long release name is cut, and stays its own by a hash: labels end at 63. */}}
{{- define "shop.fullname" -}}
{{- $name := .Values.fullnameOverride | default (ternary (printf "%s-%s" .Release.Name .Values.nameOverride) .Release.Name (ne (.Values.nameOverride | default "") "")) -}}
{{- include "shop.short" $name -}}
{{- end -}}

{{- define "shop.short" -}}
{{- include "shop.cut" (list . 36) -}}
{{- end -}}

{{/* An object's name: (list $ COMPONENT [LENGTH]); 63 at most, since Services and labels end there, and 52 for a CronJob. */}}
{{- define "shop.name" -}}
{{- include "shop.cut" (list (printf "%s-%s" (include "shop.fullname" (index . 0)) (index . 1)) (gt (len .) 2 | ternary (last .) 63)) -}}
{{- end -}}

{{/* A name of this length at most, its own by a hash of the whole: (list NAME LENGTH) */}}
{{- define "shop.cut" -}}
{{- $name := index . 0 -}}{{- $length := int (index . 1) -}}
{{- if gt (len $name) $length -}}{{ trunc (sub $length 9 | int) $name | trimSuffix "-" }}-{{ sha256sum $name | trunc 8 }}{{- else -}}{{ $name }}{{- end -}}
{{- end -}}

{{/*
The name of a bundled server's objects, and of the Secret with its passwords: (list $ "postgres"). The
server's own chart asks for it as shop.bundled.name.
*/}}
{{- define "shop.server.name" -}}
{{- $root := index . 0 -}}
{{- include "shop.bundled.name" (dict "Values" (index $root.Values (index . 1)) "Release" $root.Release "Chart" (dict "Name" (index . 1))) -}}
{{- end -}}

{{- define "shop.server.secret" -}}
{{- $root := index . 0 -}}
{{- (index $root.Values (index . 1)).auth.existingSecret | default (include "shop.server.name" .) -}}
{{- end -}}

{{- define "shop.feed.secret" -}}
{{- .Values.feed.auth.existingSecret | default (printf "%s-feed" (include "shop.fullname" .)) -}}
{{- end -}}

{{- define "shop.identity.secret" -}}
{{- .Values.identity.auth.existingSecret | default (printf "%s-identity" (include "shop.fullname" .)) -}}
{{- end -}}

{{/* The variables of the gateway's rate limits: (list $ PROCESS) */}}
{{- define "shop.rateLimitEnv" -}}
{{- $limits := (index . 0).Values.rateLimits -}}{{- $process := index . 1 -}}
- {name: RATE_LIMIT_READ, value: {{ $limits.read | quote }}}
- {name: RATE_LIMIT_WRITE, value: {{ $limits.write | quote }}}
- {name: RATE_LIMIT_COSTS, value: {{ toJson $limits.costs | quote }}}
- {name: RATE_LIMIT_REPLICAS, value: {{ ternary $process.autoscaling.maxReplicas $process.replicas $process.autoscaling.enabled | int | quote }}}
- {name: TRUSTED_PROXIES, value: {{ join " " $limits.trustedProxies | quote }}}
{{- end -}}

{{/*
The services whose identity token a process has: the gateway those of all that it calls, a service its own. Nothing
for other processes, and where callers are not asked for an identity: (list $ PROCESS NEEDS)
*/}}
{{- define "shop.identities" -}}
{{- $names := list -}}{{- $process := index . 1 -}}{{- $needs := index . 2 -}}
{{- if and (index . 0).Values.auth.enabled (eq $process.run "serve") -}}
{{- if $needs.calls }}{{ range $needs.calls }}{{ $names = append $names (trimSuffix "-service" .) }}{{ end }}{{ else }}{{ $names = list $process.service }}{{ end -}}
{{- end -}}
{{- toJson (dict "names" $names) -}}
{{- end -}}

{{/* Their variables: (list $ NEEDS NAMES) */}}
{{- define "shop.identityEnv" -}}
{{- $auth := (index . 0).Values.auth -}}{{- $needs := index . 1 -}}
{{- with index . 2 }}
- {name: AUTH, value: "on"}
{{- if $needs.calls }}
{{- range . }}
- {name: IDENTITY_{{ upper . }}_TOKEN_FILE, value: /secrets/identity_{{ . }}}
{{- end }}
{{- if or $auth.issuer $auth.audience $auth.jwks }}
{{- if not (and $auth.issuer $auth.audience $auth.jwks) }}{{ fail "auth.issuer, auth.audience and auth.jwks need each other." }}{{ end }}
- {name: AUTH_ISSUER, value: {{ $auth.issuer | quote }}}
- {name: AUTH_AUDIENCE, value: {{ $auth.audience | quote }}}
- {name: AUTH_JWKS, value: {{ $auth.jwks | quote }}}
- {name: AUTH_USER_CLAIM, value: {{ $auth.userClaim | quote }}}
{{- else if not $auth.apiKeys.secret }}
{{- fail "auth.enabled needs auth.issuer, auth.audience and auth.jwks, or auth.apiKeys.secret: nobody could call." }}
{{- end }}
{{- if $auth.apiKeys.secret }}
- {name: AUTH_API_KEYS_FILE, value: /secrets/api-keys}
{{- end }}
{{- else }}
- {name: IDENTITY_TOKEN_FILE, value: /secrets/identity}
{{- end }}
{{- end }}
{{- end -}}

{{/* Their tokens, and the API keys that the gateway knows, as sources of a volume: (list $ NEEDS NAMES) */}}
{{- define "shop.identitySource" -}}
{{- $root := index . 0 -}}{{- $calls := (index . 1).calls -}}
- secret:
    name: {{ include "shop.identity.secret" $root }}
    items:
      {{- range index . 2 }}
      - {key: {{ get $root.Values.identity.auth.secretKeys . | default . }}, path: identity{{ if $calls }}_{{ . }}{{ end }}}
      {{- end }}
{{- if and $calls $root.Values.auth.apiKeys.secret }}
- secret:
    name: {{ $root.Values.auth.apiKeys.secret }}
    items: [{key: {{ $root.Values.auth.apiKeys.key }}, path: api-keys}]
{{- end }}
{{- end -}}

{{/* How the release's own clients call: with an API key of `auth.client`, if there is one. Variables, mount, volume. */}}
{{- define "shop.client.env" -}}
{{- if .Values.auth.enabled }}
- {name: AUTH, value: "on"}
{{- if .Values.auth.client.secret }}
- {name: API_KEY_FILE, value: /client/api-key}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shop.client.mount" -}}
{{- if and .Values.auth.enabled .Values.auth.client.secret }}
- {name: client, mountPath: /client, readOnly: true}
{{- end }}
{{- end -}}

{{- define "shop.client.volume" -}}
{{- if and .Values.auth.enabled .Values.auth.client.secret }}
- name: client
  secret:
    secretName: {{ .Values.auth.client.secret }}
    defaultMode: 0440
    items: [{key: {{ .Values.auth.client.key }}, path: api-key}]
{{- end }}
{{- end -}}

{{/* Labels: (list $ COMPONENT). Selectors never change, so they name what never changes. */}}
{{- define "shop.selectorLabels" -}}
app.kubernetes.io/name: shop
app.kubernetes.io/instance: {{ include "shop.short" (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "shop.labels" -}}
{{- $root := index . 0 -}}
{{ include "shop.selectorLabels" . }}
app.kubernetes.io/part-of: shop
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with ($root.Values.global).commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "shop.commonAnnotations" -}}
{{- toYaml ((.Values.global).commonAnnotations | default dict) -}}
{{- end -}}

{{/* metadata of an object: (list $ COMPONENT NAME ANNOTATIONS) */}}
{{- define "shop.metadata" -}}
{{- $root := index . 0 -}}
{{- $annotations := merge (dict) ((gt (len .) 3 | ternary (last .) dict) | default dict) (include "shop.commonAnnotations" $root | fromYaml) -}}
name: {{ index . 2 }}
labels:
  {{- include "shop.labels" . | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image: (list $ IMAGE-VALUES NAME DEFAULT-TAG DIGEST). A digest wins over a tag. */}}
{{- define "shop.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- $registry := (($root.Values.global).imageRegistry) | default $image.registry -}}
{{- with $registry }}{{ . }}/{{ end -}}{{ index . 2 }}
{{- with index . 4 }}@{{ . }}{{ else }}:{{ include "shop.text" ($image.tag | default (index . 3)) }}{{ end -}}
{{- end -}}

{{- define "shop.processImage" -}}
{{- $root := index . 0 -}}{{- $image := $root.Values.image -}}
{{- include "shop.image" (list $root $image (printf "%s-%s" $image.repository (index . 1)) $root.Chart.AppVersion (index $image.digests (index . 1))) -}}
{{- end -}}

{{- define "shop.pullSecrets" -}}
{{- $names := concat ((.Values.global).imagePullSecrets | default list) (.Values.image.pullSecrets | default list) -}}
{{- with $names }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What runs in a main container while somebody looks into it, instead of its program; it has no probes then. Nothing if not. */}}
{{- define "shop.diagnostic" -}}
{{- if (.Values.global).diagnosticMode -}}
command: [sleep, infinity]
{{- end -}}
{{- end -}}

{{/* What every container may do: nothing. Meets the "restricted" Pod Security Standard. */}}
{{- define "shop.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{/* (list $ UID). OpenShift gives each namespace user ids of its own, and refuses all others. */}}
{{- define "shop.podSecurity" -}}
runAsNonRoot: true
{{- if not ((index . 0).Values.global).openshift }}
runAsUser: {{ index . 1 }}
runAsGroup: {{ index . 1 }}
fsGroup: {{ index . 1 }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/*
The `extra` block of values, which every workload takes, in four parts: what a pod begins with, its labels
and annotations, what its main containers add, and its further containers and volumes.

The first lines of a pod's spec, from a dict: `root`, `extra`, the image's `uid`, the values of its placement
as `where`, and the name of a service `account` of the chart's own whose token it needs.
*/}}
{{- define "shop.pod" -}}
{{- $extra := .extra -}}
{{- include "shop.pullSecrets" .root }}
{{- with $extra.serviceAccountName | default .account }}
serviceAccountName: {{ . }}
{{- end }}
automountServiceAccountToken: {{ or $extra.automountServiceAccountToken (hasKey . "account") }}
enableServiceLinks: false
securityContext:
  {{- include "shop.overlay" (list (fromYaml (include "shop.podSecurity" (list .root .uid))) $extra.podSecurityContext) | nindent 2 }}
{{- include "shop.placement" (list .where) }}
{{- with $extra.pod }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A pod's metadata: (list EXTRA LABELS ANNOTATIONS). Labels of the chart win, since selectors name them. */}}
{{- define "shop.podMetadata" -}}
{{- $extra := index . 0 -}}
labels:
  {{- toYaml (merge (dict) (index . 1) $extra.podLabels) | nindent 2 }}
{{- with merge (dict) $extra.podAnnotations (index . 2) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The security context of a container: (list EXTRA) */}}
{{- define "shop.security" -}}
securityContext:
  {{- include "shop.overlay" (list (fromYaml (include "shop.containerSecurity" .)) (index . 0).securityContext) | nindent 2 }}
{{- end -}}

{{/* Lists of a container or a pod, each as text or as values, as one: (list NAME LIST...). Nothing if all are empty. */}}
{{- define "shop.lists" -}}
{{- $text := "" -}}
{{- range rest . -}}
{{- if kindIs "string" . }}{{ $text = printf "%s\n%s" $text (trim .) }}{{ else if . }}{{ $text = printf "%s\n%s" $text (toYaml .) }}{{ end -}}
{{- end -}}
{{- with trim $text -}}
{{ first $ }}:
  {{- . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* A quantity of memory in bytes, such as 512Mi; nothing if there is none. */}}
{{- define "shop.bytes" -}}
{{- with . -}}
{{- $text := include "shop.text" . -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}{{- $number := trimSuffix $unit $text -}}
{{- if not (and (hasKey $units $unit) (regexMatch "^[0-9.]+$" $number)) }}{{ fail (printf "resources.limits.memory is %s: write it in Ki, Mi or Gi." $text) }}{{ end -}}
{{- mulf (float64 $number) (index $units $unit) | floor | printf "%.0f" -}}
{{- end -}}
{{- end -}}

{{/* A value as text; a whole number without an exponent, which Helm would give it from a million on. */}}
{{- define "shop.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{/* Where a pod may run: (list WHERE), for all that values offer in the usual words. */}}
{{- define "shop.placement" -}}
{{- $where := index . 0 -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" -}}
{{- with index $where $key }}
{{ $key }}: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* One map over another, key by key, false and 0 included; null removes a key: (list BELOW ABOVE) */}}
{{- define "shop.overlay" -}}
{{- $result := deepCopy (index . 0) -}}
{{- range $key, $value := index . 1 -}}
{{- $below := get $result $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $below) -}}
{{- $_ := set $result $key (fromYaml (include "shop.overlay" (list $below $value))) -}}
{{- else if kindIs "invalid" $value -}}
{{- $_ := unset $result $key -}}
{{- else -}}
{{- $_ := set $result $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $result -}}
{{- end -}}

{{/*
Every process by name: those that follow from `services`, with `processes` over them. A service is
NAME-service, NAME-relay and its projectors; the gateway calls all services.
*/}}
{{- define "shop.processes" -}}
{{- $all := dict -}}{{- $served := list -}}
{{- range $service, $its := .Values.services -}}
{{- if not (kindIs "invalid" $its) -}}
{{- $served = append $served (printf "%s-service" $service) -}}
{{- $_ := set $all (printf "%s-service" $service) (dict "service" $service "run" "serve" "port" $its.port) -}}
{{- $_ := set $all (printf "%s-relay" $service) (dict "service" $service "run" "relay") -}}
{{- range $name, $projector := $its.projectors -}}
{{- if not (kindIs "invalid" $projector) -}}
{{- $process := dict "service" $service "run" (printf "project %s" $projector.projection) "feed" ($projector.feed | default $service) "queue" $projector.queue "reacts" ($projector.reacts | default false) -}}
{{- $_ := set $all $name (merge $process (dict "env" ($projector.env | default dict))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $all "gateway" (dict "calls" $served "limited" (or .Values.rateLimits.read .Values.rateLimits.write | empty | not)) -}}
{{- $all = fromYaml (include "shop.overlay" (list $all .Values.processes)) -}}
{{- range $name, $process := $all -}}
{{- if not (and $process.service $process.run) }}{{ fail (printf "processes.%s is a process of no service in `services`: say its service and what it runs, in processes.%s.service and processes.%s.run." $name $name $name) }}{{ end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* A process with the defaults for what it does not say. (list $ NAME) */}}
{{- define "shop.process" -}}
{{- $root := index . 0 -}}
{{- include "shop.overlay" (list $root.Values.defaults (index (fromYaml (include "shop.processes" $root)) (index . 1))) -}}
{{- end -}}

{{/* The URL of a process that has a port: (list $ NAME) */}}
{{- define "shop.url" -}}
{{ include "shop.tls.scheme" . | lower }}://{{ include "shop.name" . }}:{{ (index (fromYaml (include "shop.processes" (index . 0))) (index . 1)).port }}
{{- end -}}

{{/* HTTPS where `tls` encrypts the calls of a process, HTTP elsewhere; those of the gateway are an ingress's: (list $ NAME) */}}
{{- define "shop.tls.scheme" -}}
{{- $process := index (fromYaml (include "shop.processes" (index . 0))) (index . 1) -}}
{{- ternary "HTTPS" "HTTP" (and (index . 0).Values.tls.enabled (eq $process.run "serve") (not $process.calls)) -}}
{{- end -}}

{{/*
The parts of a pod that `tls` needs, by what it NEEDS: a caller trusts the CA, a service has the certificate. Its
variables, its mount and its volume: (list $ NEEDS)
*/}}
{{- define "shop.tls.env" -}}
{{- $needs := index . 1 -}}
{{- if and (index . 0).Values.tls.enabled $needs.calls }}
# OpenSSL's own variable; the CAs of the system are trusted besides
- {name: SSL_CERT_FILE, value: /tls/services/ca.crt}
{{- else if and (index . 0).Values.tls.enabled $needs.feed }}
- {name: TLS_CERT_FILE, value: /tls/services/tls.crt}
- {name: TLS_KEY_FILE, value: /tls/services/tls.key}
{{- end }}
{{- end -}}

{{- define "shop.tls.mount" -}}
{{- $needs := index . 1 -}}
{{- if and (index . 0).Values.tls.enabled (or $needs.calls $needs.feed) }}
- {name: tls-services, mountPath: /tls/services, readOnly: true}
{{- end }}
{{- end -}}

{{- define "shop.tls.volume" -}}
{{- $needs := index . 1 -}}{{- $tls := (index . 0).Values.tls -}}
{{- if and $tls.enabled (or $needs.calls $needs.feed) }}
{{- $keys := ternary (list "ca.crt") (list "tls.crt" "tls.key") (not (empty $needs.calls)) }}
- name: tls-services
  secret:
    secretName: {{ $tls.secretName | default (printf "%s-services-tls" (include "shop.fullname" (index . 0))) }}
    defaultMode: 0440
    items: [{{ range $i, $key := $keys }}{{ if $i }}, {{ end }}{key: {{ $key }}, path: {{ $key }}}{{ end }}]
{{- end }}
{{- end -}}

{{/* The first part of each path that the gateway forwards, and those of `ingress`. */}}
{{- define "shop.paths" -}}
{{- $paths := list -}}
{{- range .Values.services }}{{ range (. | default dict).paths }}{{ $paths = append $paths (regexFind "^/[^/]*" .) }}{{ end }}{{ end -}}
{{- toJson (dict "paths" (uniq (concat $paths .Values.ingress.paths (ternary (list "/page") list .Values.page.enabled)))) -}}
{{- end -}}

{{- define "shop.processNames" -}}
{{- $names := list -}}
{{- range $name, $process := fromYaml (include "shop.processes" .) }}{{ if ne $process.enabled false }}{{ $names = append $names $name }}{{ end }}{{ end -}}
{{- toJson (dict "names" $names) -}}
{{- end -}}

{{/*
The servers and services that a process connects to, and its logins there. (list NAME PROCESS)
Its environment, its mounted passwords and its NetworkPolicy all come from here.
*/}}
{{- define "shop.needs" -}}
{{- $name := index . 0 -}}{{- $process := index . 1 -}}{{- $needs := dict -}}
{{- if $process.calls -}}
{{- $needs = dict "calls" $process.calls -}}
{{- if $process.limited }}{{ $_ := set $needs "mongodb" $name }}{{ end -}}
{{- else if eq $process.run "serve" -}}
{{- $needs = dict "postgres" (printf "%s_service" $process.service) "mongodb" (printf "%s-service" $process.service) "feed" $process.service -}}
{{- else if eq $process.run "relay" -}}
{{- $needs = dict "postgres" (printf "%s_relay" $process.service) "rabbitmq" (printf "%s-relay" $process.service) -}}
{{- else -}}
{{- if not $process.feed }}{{ fail (printf "processes.%s is a projector: say which service owns its events, in processes.%s.feed." $name $name) }}{{ end -}}
{{- $needs = dict "rabbitmq" $name "mongodb" $name "feed" $process.feed "calls" (splitList " " (printf "%s-service" ($process.feed | replace " " "-service "))) -}}
{{- if $process.reacts }}{{ $_ := set $needs "postgres" (printf "%s_service" $process.service) }}{{ end -}}
{{- end -}}
{{- toJson $needs -}}
{{- end -}}

{{/* The variables of the feeds that a process serves or reads, named for the stores of a view: (list $ NEEDS) */}}
{{- define "shop.feedEnv" -}}
{{- $root := index . 0 -}}{{- $needs := index . 1 -}}{{- $feeds := splitList " " $needs.feed -}}
{{- range $feed := $feeds }}
{{- $store := ternary (printf "_%s" (upper $feed)) "" (gt (len $feeds) 1) }}
{{- if $needs.calls }}
- {name: FEED{{ $store }}_URL, value: "{{ include "shop.url" (list $root (printf "%s-service" $feed)) }}"}
{{- end }}
- {name: FEED{{ $store }}_TOKEN_FILE, value: /secrets/feed{{ lower $store }}}
{{- end }}
{{- end -}}

{{/* The Secret with the tokens of those feeds, as a source of a volume: (list $ NEEDS) */}}
{{- define "shop.feedSource" -}}
{{- $root := index . 0 -}}{{- $feeds := splitList " " (index . 1).feed -}}
- secret:
    name: {{ include "shop.feed.secret" $root }}
    items:
      {{- range $feed := $feeds }}
      - {key: {{ get $root.Values.feed.auth.secretKeys $feed | default $feed }}, path: feed{{ ternary (printf "_%s" $feed) "" (gt (len $feeds) 1) }}}
      {{- end }}
{{- end -}}

{{/*
The jobs of each projector that has any, by component: what they do, and what they need, which is the
read model and the feed, and the event store where a reactor is rebuilt, since it reacts. They are pods of their own, so that no selector takes them for the projector's.
*/}}
{{- define "shop.jobs" -}}
{{- $jobs := dict -}}
{{- $processes := fromYaml (include "shop.processes" .) -}}
{{- range $name := (fromJson (include "shop.processNames" .)).names -}}
{{- $process := index $processes $name -}}
{{- if hasPrefix "project " $process.run -}}
{{- $projection := trimPrefix "project " $process.run -}}{{- $do := list -}}
{{- if $.Values.verify.enabled }}{{ $do = append $do "verify" }}{{ end -}}
{{- if has $projection $.Values.rebuild.projections }}{{ $do = append $do "rebuild" }}{{ end -}}
{{- $needs := omit (fromJson (include "shop.needs" (list $name $process))) "rabbitmq" -}}
{{- if not (has "rebuild" $do) }}{{ $needs = omit $needs "postgres" }}{{ end -}}
{{- if $do }}{{ $_ := set $jobs (printf "%s-job" $name) (dict "projector" $name "projection" $projection "do" $do "needs" $needs) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toJson $jobs -}}
{{- end -}}

{{/*
The backups of each event store, by component: whether it is dumped, the dump to be restored, and what the pods need.
*/}}
{{- define "shop.backups" -}}
{{- $backups := dict -}}{{- $stores := (fromJson (include "shop.logins" .)).services -}}
{{- range $store, $dump := .Values.restore.stores -}}
{{- if not (has $store $stores) }}{{ fail (printf "restore.stores.%s: there is no such event store; there are %s." $store (join ", " $stores)) }}{{ end -}}
{{- end -}}
{{- range $store := $stores -}}
{{- $dump := get $.Values.restore.stores $store -}}
{{- if or $.Values.backup.enabled $dump -}}
{{- $needs := dict "postgres" (printf "%s_owner" $store) "uploads" (ne $.Values.backup.upload.to "") -}}
{{- $_ := set $backups (printf "%s-backup" $store) (dict "store" $store "dump" $.Values.backup.enabled "restore" $dump "needs" $needs) -}}
{{- end -}}
{{- end -}}
{{- toJson $backups -}}
{{- end -}}

{{/* All logins by server, and the services that have an event store; the administrator's is `admin`. */}}
{{- define "shop.logins" -}}
{{- $logins := dict "postgres" (list) "rabbitmq" (list "monitor") "mongodb" (list) -}}{{- $services := list -}}
{{- $processes := fromYaml (include "shop.processes" .) -}}
{{- range $name := (fromJson (include "shop.processNames" .)).names -}}
{{- $process := index $processes $name -}}
{{- $needs := fromJson (include "shop.needs" (list $name $process)) -}}
{{- range $server, $known := $logins -}}
{{- with index $needs $server }}{{ $_ := set $logins $server (append $known . | uniq) }}{{ end -}}
{{- end -}}
{{- if and $needs.postgres (eq $process.run "serve") }}{{ $services = append $services $process.service | uniq }}{{ end -}}
{{- end -}}
{{- range $services }}{{ $_ := set $logins "postgres" (append $logins.postgres (printf "%s_owner" .)) }}{{ end -}}
{{- range list "postgres" "mongodb" }}{{ if include "shop.exported" (list $ .) }}{{ $_ := set $logins . (append (index $logins .) "monitor") }}{{ end }}{{ end -}}
{{- toJson (dict "logins" $logins "services" (sortAlpha $services)) -}}
{{- end -}}

{{/*
Whether setup makes the logins of a server: its administrator's password is known, and none of its
users has a name of yours. (list $ "postgres")
*/}}
{{- define "shop.hasAdmin" -}}
{{- $server := index (index . 0).Values (index . 1) -}}
{{- if and (not $server.auth.users) (or $server.enabled $server.external.secretKeys.adminPassword $server.auth.passwords.admin $server.auth.secretKeys.admin) }}yes{{ end -}}
{{- end -}}

{{/*
Refuses more connections than PostgreSQL takes: the pools of all replicas that there may be, one more of each
Deployment while it rolls, and those of setup, the exporter and backups.
*/}}
{{- define "shop.connections" -}}
{{- $postgres := .Values.postgres -}}{{- $most := int $postgres.external.maxConnections -}}{{- $reserved := 3 -}}
{{- $where := "postgres.external.maxConnections" -}}
{{- if $postgres.enabled -}}
{{- $most = int (include "shop.text" ($postgres.parameters.max_connections | default 100)) -}}
{{- $reserved = int (include "shop.text" ($postgres.parameters.superuser_reserved_connections | default 3)) -}}
{{- $where = "postgres.parameters.max_connections" -}}
{{- end -}}
{{- if $most -}}
{{- $sum := 0 -}}{{- $parts := list -}}
{{- range $name := (fromJson (include "shop.processNames" .)).names -}}
{{- $process := fromYaml (include "shop.process" (list $ $name)) -}}
{{- if (fromJson (include "shop.needs" (list $name $process))).postgres -}}
{{- $pods := $process.replicas -}}
{{- if $process.autoscaling.enabled }}{{ $pods = $process.autoscaling.maxReplicas }}{{ else if $process.keda.enabled }}{{ $pods = $process.keda.maxReplicas }}{{ end -}}
{{- $each := ternary 3 1 (default false $process.reacts) -}}
{{- if eq $process.run "serve" -}}
{{- $threads := get $process.env "THREADS" | default 16 -}}
{{- range $process.extra.env }}{{ if eq .name "THREADS" }}{{ $threads = .value }}{{ end }}{{ end -}}
{{- $each = add1 (int (include "shop.text" $threads)) -}}
{{- end -}}
{{- $sum = add $sum (mul (add1 (int $pods)) $each) -}}
{{- $parts = append $parts (printf "%s %d pods of %d" $name (add1 (int $pods)) (int $each)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $job := fromJson (include "shop.jobs" .) }}{{ if $job.needs.postgres }}{{ $sum = add $sum 3 }}{{ end }}{{ end -}}
{{- if .Values.setup.enabled }}{{ $sum = add $sum (mul 2 (len (fromJson (include "shop.logins" .)).services)) }}{{ end -}}
{{- if include "shop.exported" (list . "postgres") }}{{ $sum = add $sum 2 }}{{ end -}}
{{- $sum = add $sum (len (fromJson (include "shop.backups" .))) -}}
{{- if gt (int (add $sum $reserved)) $most -}}
{{- fail (printf "The pods may open %d connections to PostgreSQL, which takes %d and reserves %d of them (%s; one pod of each is counted for a rolling update). Raise %s, or lower maxReplicas or THREADS." (int $sum) $most $reserved (join ", " $parts) $where) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* How a Prometheus finds what to scrape. In `global`, since the servers' own charts must know it as well. */}}
{{- define "shop.scrape" -}}
{{- $scrape := (.Values.global).scrape | default "annotations" -}}
{{- if not (has $scrape (list "annotations" "monitor" "none")) }}{{ fail (printf "global.scrape is %s: it must be annotations, monitor or none." $scrape) }}{{ end -}}
{{- $scrape -}}
{{- end -}}

{{/* The annotations by which a Prometheus finds a pod's metrics, where it is found so: (list $ PORT) */}}
{{- define "shop.scraped" -}}
{{- if eq (include "shop.scrape" (index . 0)) "annotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ index . 1 | quote }}
prometheus.io/path: /metrics
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* What looks at the system, and whom each of it reaches; see templates/observability.yaml. */}}
{{- define "shop.observed" -}}
{{- $all := (index . 0).Values.observability -}}
{{- if and $all.enabled (index $all (index . 1)).enabled }}yes{{ end -}}
{{- end -}}

{{- define "shop.exported" -}}
{{- $enabled := (index (index . 0).Values.exporters (index . 1)).enabled -}}
{{- if eq (toString $enabled) "auto" }}{{ include "shop.observed" (list (index . 0) "prometheus") }}{{ else if $enabled }}yes{{ end -}}
{{- end -}}

{{/* Where processes send their spans; nowhere if empty. */}}
{{- define "shop.traces" -}}
{{- if .Values.tracing.endpoint -}}
{{ .Values.tracing.endpoint }}
{{- else if include "shop.observed" (list . "collector") -}}
http://{{ include "shop.fullname" . }}-collector:4318
{{- end -}}
{{- end -}}

{{/* The port of that place. */}}
{{- define "shop.traces.port" -}}
{{- $url := urlParse (include "shop.traces" .) -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{/*
The exporters and the bundled stack that there are, with what each needs: a server as its login
`monitor`, others of them at a port, all that has metrics.
*/}}
{{- define "shop.tools" -}}
{{- $tools := dict -}}
{{- range list "postgres" "mongodb" -}}
{{- if include "shop.exported" (list $ .) }}{{ $_ := set $tools (printf "%s-exporter" .) (dict . "monitor" "metrics" true) }}{{ end -}}
{{- end -}}
{{- $reaches := dict "prometheus" (dict) "jaeger" (dict) "collector" (dict "jaeger" 4317) "grafana" (dict "prometheus" 9090 "jaeger" 16686) -}}
{{- range $name, $others := $reaches -}}
{{- if include "shop.observed" (list $ $name) -}}
{{- $needs := dict "tools" (dict) "scrapes" (eq $name "prometheus") -}}
{{- range $other, $port := $others }}{{ if include "shop.observed" (list $ $other) }}{{ $_ := set $needs.tools $other $port }}{{ end }}{{ end -}}
{{- $_ := set $tools $name $needs -}}
{{- end -}}
{{- end -}}
{{- toJson $tools -}}
{{- end -}}

{{/* What has metrics, with the port they are at: processes, exporters, and RabbitMQ, which has its own. */}}
{{- define "shop.metrics" -}}
{{- $ports := dict -}}
{{- range (fromJson (include "shop.processNames" .)).names }}{{ $_ := set $ports . 9464 }}{{ end -}}
{{- if .Values.rabbitmq.enabled }}{{ $_ := set $ports "rabbitmq" 15692 }}{{ end -}}
{{- if include "shop.exported" (list . "postgres") }}{{ $_ := set $ports "postgres-exporter" 9187 }}{{ end -}}
{{- if include "shop.exported" (list . "mongodb") }}{{ $_ := set $ports "mongodb-exporter" 9216 }}{{ end -}}
{{- toJson $ports -}}
{{- end -}}

{{/* An environment variable from a value, or from a key of the server's Secret: (list NAME SECRET KEY VALUE) */}}
{{- define "shop.variable" -}}
- name: {{ index . 0 }}
{{- if and (index . 1) (index . 2) }}
  valueFrom: {secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 2 }}}}
{{- else }}
  value: {{ include "shop.text" (index . 3) | quote }}
{{- end }}
{{- end -}}

{{/* The port of a server for a login; administrators of RabbitMQ use its management API: (list $ SERVER LOGIN) */}}
{{- define "shop.serverPort" -}}
{{- $server := index (index . 0).Values (index . 1) -}}
{{- $ports := dict "postgres" 5432 "rabbitmq" 5672 "mongodb" 27017 "management" 15672 -}}
{{- if include "shop.serversTls" (index . 0) }}{{ $ports = merge (dict "rabbitmq" 5671 "management" 15671) $ports }}{{ end -}}
{{- $management := and (eq (index . 1) "rabbitmq") (eq (index . 2) "admin") -}}
{{- if $server.enabled -}}
{{ index $ports (ternary "management" (index . 1) $management) }}
{{- else -}}
{{ int (ternary $server.external.managementPort $server.external.port $management) }}
{{- end -}}
{{- end -}}

{{/*
The variables that say where a server is and who we are: (list $ SERVER LOGIN DATABASE PASSWORD-FILE)
For the login `admin` it is the administrator, at the port that administrators use. Without a file, the
password is told in another way.
*/}}
{{- define "shop.serverEnv" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $login := index . 2 -}}
{{- $server := index $root.Values $name -}}{{- $external := $server.external -}}
{{- $prefix := upper $name -}}{{- $admin := eq $login "admin" -}}
{{- $host := "" -}}{{- $secret := "" -}}{{- $keys := dict -}}{{- $options := "" -}}
{{- if $server.enabled -}}
{{- $host = include "shop.server.name" (list $root $name) -}}
{{- if eq $name "mongodb" }}{{ $options = "retryWrites=false" }}{{ end -}}
{{- else -}}
{{- $secret = $external.secret -}}{{- $keys = $external.secretKeys -}}
{{- $host = $external.host -}}{{- $options = $external.options -}}
{{- if not (or $host (and $secret $keys.host)) }}{{ fail (printf "%s.enabled is false: say where it is, in %s.external.host (or external.secret and secretKeys.host)." $name $name) }}{{ end -}}
{{- end -}}
{{- $portKey := ternary "" $keys.port (and $admin (eq $name "rabbitmq")) -}}
{{- $user := ternary (ternary (get (dict "postgres" "postgres") $name | default "admin") $external.adminUser $server.enabled) $login $admin -}}
{{ include "shop.variable" (list (printf "%s_HOST" $prefix) $secret $keys.host $host) }}
{{ include "shop.variable" (list (printf "%s_PORT" $prefix) $secret $portKey (include "shop.serverPort" (list $root $name $login))) }}
{{ include "shop.variable" (list (printf "%s_%s" $prefix (ternary "VHOST" "DATABASE" (eq $name "rabbitmq"))) "" "" (index . 3)) }}
{{- if and $admin (not $server.enabled) }}
{{ include "shop.variable" (list (printf "%s_USER" $prefix) $secret $keys.adminUser $user) }}
{{- else }}
{{ include "shop.variable" (list (printf "%s_USER" $prefix) "" "" (get $server.auth.users $login | default $user)) }}
{{- end }}
{{- with index . 4 }}
- {name: {{ $prefix }}_PASSWORD_FILE, value: {{ . }}}
{{- end }}
{{- with $options }}
- {name: {{ $prefix }}_OPTIONS, value: {{ . | quote }}}
{{- end }}
{{- $tls := fromJson (include "shop.server.tls" (list $root $name)) }}
{{- if $tls.enabled }}
- {name: {{ $prefix }}_TLS, value: "on"}
{{- if $tls.caSecret }}
- {name: {{ $prefix }}_CA_FILE, value: /tls/{{ $name }}/ca.crt}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shop.vhost" -}}
{{- ternary "/" (.Values.rabbitmq.external.vhost | default "/") .Values.rabbitmq.enabled -}}
{{- end -}}

{{/*
A password, as a Secret has it: the one given, the one held, or a new one: (list $ GIVEN HELD SECRET KEY). A new one
needs a cluster that can be asked for the one it holds, or the data would be kept under a password that nobody has.
*/}}
{{- define "shop.password" -}}
{{- $root := index . 0 -}}{{- $secret := index . 3 -}}{{- $key := index . 4 -}}
{{- with get (index . 1) $key | default "" -}}
{{ b64enc . }}
{{- else with get (index . 2) $key | default "" -}}
{{ . }}
{{- else -}}
{{- $generate := $root.Values.auth.generate -}}
{{- if or (eq $generate "never") (and (eq $generate "auto") (not (include "shop.online" $root))) -}}
{{- fail (printf "There is no password %s for the Secret %s, and this rendering cannot ask the cluster whether it holds one. Argo CD, Flux and `helm template` would make new passwords each time, and lock the data up. Make the Secrets yourself and name them in postgres.auth.existingSecret, rabbitmq.auth.existingSecret, mongodb.auth.existingSecret, feed.auth.existingSecret and, with auth.enabled, identity.auth.existingSecret (k8s/gitops has examples), or give passwords as values. For a rendering to look at: --set auth.generate=always." $key $secret) -}}
{{- end -}}
{{ randAlphaNum 32 | b64enc }}
{{- end -}}
{{- end -}}

{{/*
Whether the cluster can be asked. Its own namespace is what a user with few rights may read; one that is still to be
made belongs to a user who may read `default`.
*/}}
{{- define "shop.online" -}}
{{- if lookup "v1" "Namespace" "" .Release.Namespace }}yes{{ else if lookup "v1" "Namespace" "" "default" }}yes{{ end -}}
{{- end -}}

{{/* A password as a source of a projected volume: (list $ SERVER LOGIN PATH) */}}
{{- define "shop.passwordSource" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $login := index . 2 -}}
{{- $server := index $root.Values $name -}}
{{- $own := and (eq $login "admin") (not $server.enabled) $server.external.secret $server.external.secretKeys.adminPassword }}
- secret:
    {{- if $own }}
    name: {{ $server.external.secret }}
    items: [{key: {{ $server.external.secretKeys.adminPassword }}, path: {{ index . 3 }}}]
    {{- else }}
    name: {{ include "shop.server.secret" (list $root $name) }}
    items: [{key: {{ get $server.auth.secretKeys $login | default $login }}, path: {{ index . 3 }}}]
    {{- end }}
{{- end -}}

{{/* Whether the bundled servers take TLS alone. In `global`, since their own charts must know it as well. */}}
{{- define "shop.serversTls" -}}
{{- if ((.Values.global).serversTls).enabled }}yes{{ end -}}
{{- end -}}

{{/* The Secret with the certificate of all bundled servers. */}}
{{- define "shop.serversTls.secret" -}}
{{- ((.Values.global).serversTls).secretName | default (printf "%s-servers-tls" (include "shop.short" .Release.Name)) -}}
{{- end -}}

{{/* The values `tls` of a server, bundled or external: `enabled`, and `caSecret` and `caKey`, by which clients verify it. (list $ "postgres") */}}
{{- define "shop.server.tls" -}}
{{- $root := index . 0 -}}{{- $server := index $root.Values (index . 1) -}}
{{- if not $server.enabled -}}
{{- toJson $server.external.tls -}}
{{- else if include "shop.serversTls" $root -}}
{{- toJson (dict "enabled" true "caSecret" (include "shop.serversTls.secret" $root) "caKey" "ca.crt") -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* The CA certificates of these servers, as volumes and their mounts: (list $ (list "postgres")) */}}
{{- define "shop.tlsVolumes" -}}
{{- $root := index . 0 -}}
{{- range index . 1 }}
{{- $tls := fromJson (include "shop.server.tls" (list $root .)) }}
{{- if and $tls.enabled $tls.caSecret }}
- name: tls-{{ . }}
  secret: {secretName: {{ $tls.caSecret }}, items: [{key: {{ $tls.caKey }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shop.tlsMounts" -}}
{{- $root := index . 0 -}}
{{- range index . 1 }}
{{- $tls := fromJson (include "shop.server.tls" (list $root .)) }}
{{- if and $tls.enabled $tls.caSecret }}
- {name: tls-{{ . }}, mountPath: /tls/{{ . }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* What the bundled servers share, each used within the server's own chart: names, metadata, parts of a StatefulSet. */}}
{{- define "shop.bundled.name" -}}
{{- .Values.fullnameOverride | default (printf "%s-%s" (include "shop.short" .Release.Name) .Chart.Name) -}}
{{- end -}}

{{- define "shop.bundled.metadata" -}}
name: {{ include "shop.bundled.name" . }}
labels:
  {{- include "shop.bundled.podLabels" . | nindent 2 }}
  app.kubernetes.io/version: {{ include "shop.text" (.Values.image.tag | default .Chart.AppVersion) | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with (.Values.global).commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Without the chart's version: a new one of the chart alone starts no server again. */}}
{{- define "shop.bundled.podLabels" -}}
{{ include "shop.selectorLabels" (list . .Chart.Name) }}
app.kubernetes.io/part-of: shop
{{- with (.Values.global).commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A Service: (list $ PORTS-BY-NAME) */}}
{{- define "shop.bundled.service" -}}
{{- $ := index . 0 -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "shop.bundled.metadata" $ | nindent 2 }}
spec:
  selector:
    {{- include "shop.selectorLabels" (list $ $.Chart.Name) | nindent 4 }}
  ports:
    {{- range $name, $port := index . 1 }}
    - {name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}}
    {{- end }}
{{- end -}}

{{/* The StatefulSet's spec without its pod. */}}
{{- define "shop.bundled.spec" -}}
replicas: 1
serviceName: {{ include "shop.bundled.name" . }}
revisionHistoryLimit: 3
selector:
  matchLabels:
    {{- include "shop.selectorLabels" (list . .Chart.Name) | nindent 4 }}
{{- if not .Values.persistence.existingClaim }}
volumeClaimTemplates:
  - metadata:
      name: data
      labels:
        {{- include "shop.selectorLabels" (list . .Chart.Name) | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .Values.persistence.storageClass | default ($.Values.global).storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources: {requests: {storage: {{ .Values.persistence.size }}}}
{{- end }}
{{- end -}}

{{/* The pod's labels and annotations: (list $ CONFIG [METRICS-PORT]); a changed CONFIG rolls it */}}
{{- define "shop.bundled.podMetadata" -}}
{{- $ := index . 0 -}}
{{- $annotations := gt (len .) 2 | ternary (include "shop.scraped" (list $ (last .))) "{}" | fromYaml -}}
{{- $_ := set $annotations "checksum/config" (index . 1 | sha256sum | trunc 16) -}}
{{- $annotations = merge $annotations (include "shop.commonAnnotations" $ | fromYaml) -}}
{{- include "shop.podMetadata" (list $.Values.extra (include "shop.bundled.podLabels" $ | fromYaml) $annotations) }}
{{- end -}}

{{- define "shop.bundled.pod" -}}
{{- include "shop.pod" (dict "root" . "extra" .Values.extra "uid" 999 "where" .Values) }}
terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
{{- end -}}

{{- define "shop.bundled.image" -}}
image: {{ include "shop.image" (list . .Values.image .Values.image.repository .Chart.AppVersion .Values.image.digest) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
{{ include "shop.security" (list .Values.extra) }}
{{- with .Values.extra.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Lines of a script of bash that open a TLS connection, read at descriptor 3 and written at 4: (list $ ADDRESS). With an
argument the script verifies as clients do. Liveness does not: a certificate that expires must end no open connection.
It waits for openssl, since a server as process 1 waits for no child that it did not start.
*/}}
{{- define "shop.bundled.openssl" -}}
[ $# = 0 ] || verify=(-CAfile /tls/ca.crt -verify_return_error -verify_hostname {{ include "shop.bundled.name" (index . 0) }})
trap 'kill $! 2>/dev/null; wait' EXIT
coproc tls { exec openssl s_client -quiet -no_ign_eof "${verify[@]}" -connect "{{ index . 1 }}" 2>/dev/null; }
exec 3<&"${tls[0]}" 4>&"${tls[1]}"
{{- end -}}

{{/* The volumes that hold data, the administrator's password, as the file `admin`, and with TLS the certificate. */}}
{{- define "shop.bundled.volumes" -}}
- name: admin
  secret:
    secretName: {{ .Values.auth.existingSecret | default (include "shop.bundled.name" .) }}
    defaultMode: 0440
    items: [{key: {{ .Values.auth.secretKeys.admin | default "admin" }}, path: admin}]
{{- with .Values.persistence.existingClaim }}
- name: data
  persistentVolumeClaim: {claimName: {{ . }}}
{{- end }}
{{- if include "shop.serversTls" . }}
- name: tls
  secret:
    secretName: {{ include "shop.serversTls.secret" . }}
    defaultMode: 0440
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}, {key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}
