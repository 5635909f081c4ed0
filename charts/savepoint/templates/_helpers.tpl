{{/* Names are fixed: CRDs are cluster-wide, so there is one installation per cluster. */}}
{{- define "savepoint.labels" -}}
app.kubernetes.io/name: savepoint
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "savepoint.selector" -}}
app.kubernetes.io/name: savepoint
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "savepoint.operatorImage" -}}
{{ .Values.image.operator | default (printf "savepoint-operator:%s" .Chart.AppVersion) }}
{{- end }}

{{- define "savepoint.sidecarImage" -}}
{{ .Values.image.sidecar | default (printf "savepoint-sidecar:%s" .Chart.AppVersion) }}
{{- end }}

{{- define "savepoint.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:savepoint-operator
{{- end }}

{{/* Default store that the operator creates, as JSON {"name", "spec"}. Empty if no bucket is configured. */}}
{{- define "savepoint.defaultStore" -}}
{{- $s3 := .Values.store.s3 -}}
{{- if $s3.bucket -}}
{{- $fields := dict "endpoint" $s3.endpoint "podEndpoint" $s3.podEndpoint "bucket" $s3.bucket "prefix" $s3.prefix "region" $s3.region "addressing" $s3.addressing "credentialsSecretName" $s3.credentialsSecret "caSecretName" $s3.caSecret -}}
{{- $spec := dict "default" true -}}
{{- range $name, $value := $fields -}}
{{- if not $value -}}{{- $fields = unset $fields $name -}}{{- end -}}
{{- end -}}
{{- $spec = set $spec "s3" $fields -}}
{{- with .Values.store.allowedNamespaces -}}{{- $spec = set $spec "allowedNamespaces" . -}}{{- end -}}
{{- dict "name" .Values.store.name "spec" $spec | toJson -}}
{{- end -}}
{{- end }}

{{- define "savepoint.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "savepoint.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
