{{- define "progrpo-dev.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects pods never changes: selectors of Deployments and StatefulSets are immutable. Give (list $ COMPONENT). */}}
{{- define "progrpo-dev.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Values.nameOverride | default $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Give (list $ COMPONENT). */}}
{{- define "progrpo-dev.labels" -}}
{{- $root := index . 0 -}}
{{ include "progrpo-dev.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: progrpo
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Without versions, so that an upgrade of the chart alone does not restart the database. Give (list $ COMPONENT). */}}
{{- define "progrpo-dev.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "progrpo-dev.selectorLabels" . }}
app.kubernetes.io/part-of: progrpo
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object. Give (list $ COMPONENT NAME [ANNOTATIONS]). */}}
{{- define "progrpo-dev.metadata" -}}
{{- $root := index . 0 -}}
{{- $annotations := $root.Values.commonAnnotations -}}
{{- if gt (len .) 3 -}}
{{- $annotations = merge (dict) (index . 3) $annotations -}}
{{- end -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "progrpo-dev.labels" (list $root (index . 1)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Give (list $ IMAGE). */}}
{{- define "progrpo-dev.image" -}}
{{- $root := index . 0 -}}
{{- with index . 1 -}}
{{- if has .tag (list "latest" "nightly" "main") -}}{{ fail (printf "the tag %s of %s means another image every day: give a version" .tag .repository) }}{{- end -}}
{{- printf "%s/%s:%s" ($root.Values.global.imageRegistry | default .registry) .repository .tag -}}
{{- with .digest }}@{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "progrpo-dev.imagePullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "progrpo-dev.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "progrpo-dev.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Give (list $ UID); the files of a volume belong to the same group. */}}
{{- define "progrpo-dev.podSecurityContext" -}}
{{- $root := index . 0 -}}
{{- $uid := index . 1 -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- if not $root.Values.openshift }}
runAsUser: {{ $uid }}
runAsGroup: {{ $uid }}
fsGroup: {{ $uid }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end -}}

{{- define "progrpo-dev.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Placement of a pod. Give the values of its component. */}}
{{- define "progrpo-dev.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "progrpo-dev.mlflow.secretName" -}}
{{- .Values.mlflow.auth.existingSecret | default .Values.mlflow.auth.secretName -}}
{{- end -}}

{{- define "progrpo-dev.mlflow.sessionSecretName" -}}
{{- .Values.mlflow.auth.existingSessionSecret | default (printf "%s-mlflow-session" (include "progrpo-dev.fullname" .)) -}}
{{- end -}}

{{- define "progrpo-dev.s3.secretName" -}}
{{- if .Values.s3.enabled -}}
{{- .Values.s3.auth.existingSecret | default .Values.s3.auth.secretName -}}
{{- else -}}
{{- .Values.mlflow.externalS3.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "progrpo-dev.postgresql.secretName" -}}
{{- if .Values.postgresql.enabled -}}
{{- .Values.postgresql.auth.existingSecret | default (printf "%s-postgresql" (include "progrpo-dev.fullname" .)) -}}
{{- else -}}
{{- .Values.mlflow.externalDatabase.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "progrpo-dev.s3.endpoint" -}}
{{- if .Values.s3.enabled -}}
{{- printf "http://%s-s3:%v" (include "progrpo-dev.fullname" .) .Values.s3.port -}}
{{- else -}}
{{- .Values.mlflow.externalS3.endpoint -}}
{{- end -}}
{{- end -}}

{{/* Without a password, which libpq takes from PGPASSWORD: nothing to quote, and nothing secret in a log or a process list. */}}
{{- define "progrpo-dev.database.uri" -}}
{{- if .Values.postgresql.enabled -}}
{{- printf "postgresql+psycopg://%s@%s-postgresql:%v/%s" .Values.postgresql.user (include "progrpo-dev.fullname" .) .Values.postgresql.port .Values.postgresql.database -}}
{{- else -}}
{{- with .Values.mlflow.externalDatabase -}}
{{- printf "postgresql+psycopg://%s@%s:%v/%s" .user (required "postgresql.enabled is false, so MLflow needs a database: set mlflow.externalDatabase.host" .host) .port .database -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names under which the Service is reached, and what the user adds. MLflow knows localhost and private addresses itself only where no list is given. */}}
{{- define "progrpo-dev.mlflow.allowedHosts" -}}
{{- $name := printf "%s-mlflow" (include "progrpo-dev.fullname" .) -}}
{{- $hosts := list -}}
{{- range list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.*" $name .Release.Namespace) "localhost" "127.0.0.1" -}}
{{- $hosts = concat $hosts (list . (printf "%s:*" .)) -}}
{{- end -}}
{{- concat $hosts .Values.mlflow.allowedHosts | join "," -}}
{{- end -}}
