{{- define "sploot.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sploot.namespace" -}}
{{- .Values.namespace | default .Release.Namespace -}}
{{- end -}}

{{- /* The runbook and every dashboard select app=sploot-cluster. */ -}}
{{- define "sploot.selector" -}}
app: sploot-cluster
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
sploot-cluster/pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "sploot.labels" -}}
{{ include "sploot.selector" . }}
app.kubernetes.io/name: sploot-cluster
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sploot.name" -}}
{{- if .name -}}
{{- .name -}}
{{- else -}}
{{- include "sploot.fullname" .root }}-{{ .component }}{{ if ne (.pool | default "default") "default" }}-{{ .pool }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* Name, namespace, labels and annotations of an object. */ -}}
{{- define "sploot.metadata" -}}
name: {{ include "sploot.name" . }}
namespace: {{ include "sploot.namespace" .root }}
labels:
  {{- include "sploot.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge dict (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sploot.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "sploot.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "sploot.image" -}}
{{- with .Values.global.imageRegistry }}{{ . }}/{{ end -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "sploot.imagePullSecrets" -}}
{{- with concat .Values.imagePullSecrets (.Values.global.imagePullSecrets | default list) -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* OpenShift assigns user and group ids to each namespace, and refuses fixed ones. */ -}}
{{- define "sploot.podSecurity" -}}
{{- $context := .Values.podSecurityContext -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{- /* The variables of a container: its own, those that all share, and extraEnv, which takes precedence. */ -}}
{{- define "sploot.env" -}}
{{- $extra := dict -}}
{{- range .own.extraEnv }}{{ $_ := set $extra .name true }}{{ end -}}
{{- $variables := list -}}
{{- range concat (.env | default list) (include "sploot.sharedEnv" . | fromYamlArray) -}}
{{- if not (hasKey $extra .name) }}{{ $variables = append $variables . }}{{ end -}}
{{- end -}}
{{- toYaml (concat $variables .own.extraEnv) -}}
{{- end -}}

{{- define "sploot.sharedEnv" -}}
{{- $v := .root.Values -}}
- name: REDIS_URL_FILE
  value: /etc/sploot/redis/url
- name: SPLOOT_LOG_LEVEL
  value: {{ $v.settings.logLevel | quote }}
- name: SPLOOT_LEASE_MS
  value: {{ $v.settings.leaseMs | int | quote }}
- name: SPLOOT_MAX_DELIVERIES
  value: {{ $v.settings.maxDeliveries | int | quote }}
- name: SPLOOT_DEAD_LETTER_DAYS
  value: {{ $v.settings.deadLetterDays | int | quote }}
- name: SPLOOT_MAX_DEAD_LETTERS
  value: {{ $v.settings.maxDeadLetters | int64 | quote }}
- name: SPLOOT_MAX_DEAD_LETTERS_MB
  value: {{ $v.settings.maxDeadLettersMb | int64 | quote }}
- name: SPLOOT_MAX_QUEUE_LENGTH
  value: {{ $v.settings.maxQueueLength | int64 | quote }}
- name: SPLOOT_READ_AHEAD_MS
  value: {{ $v.settings.readAheadMs | int | quote }}
- name: SPLOOT_BATCH_SIZE
  value: {{ $v.settings.batchSize | int | quote }}
- name: SPLOOT_KEEPER_PROCESS
  value: {{ $v.settings.keeperProcess | toString | quote }}
- name: SPLOOT_INGEST_ROLLOUT_PERCENT
  value: {{ $v.ingest.rolloutPercent | int | quote }}
{{- with $v.settings.environment }}
- name: SPLOOT_ENVIRONMENT
  value: {{ . | quote }}
{{- end }}
{{- if $v.settings.sentrySecret.name }}
- name: SENTRY_DSN_FILE
  value: /etc/sploot/sentry/dsn
{{- end }}
{{- with $v.settings.coldStore }}
- name: SPLOOT_COLD_STORE
  value: {{ . | quote }}
- name: SPLOOT_COLD_AFTER_DAYS
  value: {{ $v.settings.coldAfterDays | int | quote }}
{{- end }}
{{- with $v.settings.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with $v.settings.models }}
- name: SPLOOT_MODELS
  value: {{ $models := list }}{{ range $name, $dimension := . }}{{ $models = append $models (printf "%s=%d" $name (int $dimension)) }}{{ end }}{{ join "," $models | quote }}
{{- end }}
{{- range $name, $value := $v.settings.clustering }}
- name: SPLOOT_CLUSTERING_{{ upper $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{- define "sploot.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: redis
  mountPath: /etc/sploot/redis
  readOnly: true
{{- if .root.Values.settings.sentrySecret.name }}
- name: sentry
  mountPath: /etc/sploot/sentry
  readOnly: true
{{- end }}
{{- if .root.Values.redis.tlsSecret }}
- name: redis-tls
  mountPath: /etc/sploot/redis-tls
  readOnly: true
{{- end }}
{{- with .own.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sploot.volumes" -}}
# Metrics of the worker processes; kept in memory, because every job writes to it.
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
- name: redis
  secret:
    secretName: {{ .secret.name }}
    defaultMode: 292
    items:
      - key: {{ .secret.key }}
        path: url
{{- if .root.Values.settings.sentrySecret.name }}
- name: sentry
  secret:
    secretName: {{ .root.Values.settings.sentrySecret.name }}
    defaultMode: 292
    items:
      - key: {{ .root.Values.settings.sentrySecret.key }}
        path: dsn
{{- end }}
{{- with .root.Values.redis.tlsSecret }}
- name: redis-tls
  secret:
    secretName: {{ . }}
    defaultMode: 292
{{- end }}
{{- with .own.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sploot.placement" -}}
{{- with .own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .own.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .own.topologySpreadConstraints | nindent 2 }}
{{- else if and .spread .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: {{ $.root.Values.topologySpread.maxSkew }}
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "sploot.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* The part of the pod spec that all components share. */ -}}
{{- define "sploot.pod" -}}
serviceAccountName: {{ include "sploot.serviceAccount" .root }}
automountServiceAccountToken: false
# Keep variables such as SPLOOT_CLUSTER_PORT, which Kubernetes derives from a Service of that name, out of the pod.
enableServiceLinks: false
{{- with include "sploot.imagePullSecrets" .root }}
{{ . }}
{{- end }}
{{- with .own.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
securityContext:
  {{- include "sploot.podSecurity" .root | nindent 2 }}
{{- with .own.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .own.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .own.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "sploot.placement" . }}
{{ trim . }}
{{- end }}
{{- with .own.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The part of a container of this project's image that all components share. */ -}}
{{- define "sploot.container" -}}
image: {{ include "sploot.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  {{- include "sploot.env" . | nindent 2 }}
{{- with .own.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $name := list "startupProbe" "livenessProbe" "readinessProbe" }}
{{- with mergeOverwrite dict (get ($.probes | default dict) $name | default dict) (get $.own $name | default dict) }}
{{ $name }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
resources:
  {{- toYaml .own.resources | nindent 2 }}
securityContext:
  {{- toYaml .root.Values.containerSecurityContext | nindent 2 }}
volumeMounts:
  {{- include "sploot.mounts" . | nindent 2 }}
{{- end -}}

{{- /* The probes of a container that serves HTTP on the named port. Liveness must not depend on Redis: an outage of
Redis would restart every pod. */ -}}
{{- define "sploot.httpProbes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ .port }}}
  periodSeconds: 2
  failureThreshold: {{ div .startSeconds 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 3
{{- end -}}

{{- define "sploot.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "sploot.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .own.podDisruptionBudget.maxUnavailable }}
  # A pod that is waiting for Redis may be evicted.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "sploot.selector" . | nindent 6 }}
{{- end -}}

{{- define "sploot.podMeta" -}}
labels:
  {{- include "sploot.labels" . | nindent 2 }}
  {{- with merge dict (.own.podLabels | default dict) .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge dict (.podChecksums | default dict) (.own.podAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* All queues, as JSON. */ -}}
{{- define "sploot.queues" -}}
["embedding.ingested", "cluster.feedback", "cluster.recluster", "cluster.maintenance"]
{{- end -}}

{{- /* The worker pools, as JSON: name -> its values. The values of a pool are those of worker, with its own. */ -}}
{{- define "sploot.pools" -}}
{{- $main := merge (dict "autoscaling" .Values.autoscaling) .Values.worker -}}
{{- $pools := dict "default" $main -}}
{{- range $name, $own := .Values.pools -}}
{{- $fixed := dict "autoscaling" (dict "mode" "none") -}}
{{- $_ := set $pools $name (mergeOverwrite (deepCopy $main) $fixed $own) -}}
{{- end -}}
{{- $served := list -}}
{{- range $own := $pools -}}
{{- if not $own.queues }}{{ $_ := set $own "queues" list }}{{ $served = include "sploot.queues" $ | fromJsonArray }}{{ end -}}
{{- $served = concat $served $own.queues -}}
{{- end -}}
{{- range include "sploot.queues" . | fromJsonArray -}}
{{- if not (has . $served) -}}
{{- fail (printf "worker.queues: no pool consumes %s, so its jobs would wait forever; add it to worker.queues or to pools" .) -}}
{{- end -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{- /* The queues of a pool by which autoscaling counts, as JSON; not maintenance, which gets jobs even when idle. */ -}}
{{- define "sploot.scaledQueues" -}}
{{- without (.own.queues | default (include "sploot.queues" .root | fromJsonArray)) "cluster.maintenance" | toJson -}}
{{- end -}}
