{{- define "sploot.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
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
{{- end -}}

{{- define "sploot.labels" -}}
{{ include "sploot.selector" . }}
app.kubernetes.io/name: sploot-cluster
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "sploot.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "sploot.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "sploot.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "sploot.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sploot.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Settings that worker, scheduler and server share. */ -}}
{{- define "sploot.env" -}}
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
{{- with .own.extraEnv }}
{{ toYaml . }}
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
    defaultMode: 288
    items:
      - key: {{ .secret.key }}
        path: url
{{- if .root.Values.settings.sentrySecret.name }}
- name: sentry
  secret:
    secretName: {{ .root.Values.settings.sentrySecret.name }}
    defaultMode: 288
    items:
      - key: {{ .root.Values.settings.sentrySecret.key }}
        path: dsn
{{- end }}
{{- with .root.Values.redis.tlsSecret }}
- name: redis-tls
  secret:
    secretName: {{ . }}
    defaultMode: 288
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
{{- if and .spread .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: {{ $.root.Values.topologySpread.maxSkew }}
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "sploot.selector" (dict "root" $.root "component" $.component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* The part of the pod spec that worker, scheduler and server share. */ -}}
{{- define "sploot.pod" -}}
serviceAccountName: {{ include "sploot.serviceAccount" .root }}
automountServiceAccountToken: false
# Keep variables such as SPLOOT_CLUSTER_PORT, which Kubernetes derives from a Service of that name, out of the pod.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationGracePeriodSeconds: {{ .own.terminationGracePeriodSeconds }}
securityContext:
  {{- include "sploot.podSecurity" . | nindent 2 }}
{{- with include "sploot.placement" . }}
{{ trim . }}
{{- end }}
{{- end -}}

{{- define "sploot.podMeta" -}}
labels:
  {{- include "sploot.labels" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .own.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Streams that autoscaling reads; not maintenance, which gets a job every few seconds even when idle. */ -}}
{{- define "sploot.scaledQueues" -}}
embedding.ingested cluster.feedback cluster.recluster
{{- end -}}
