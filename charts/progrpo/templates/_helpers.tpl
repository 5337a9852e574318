{{- define "progrpo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Room is left for the longest suffix of ours, and for the 11 characters that a CronJob adds. */ -}}
{{- define "progrpo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "progrpo.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "progrpo.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Labels that find pods: they can never change. Takes (dict "root" $ "component" "name"). */ -}}
{{- define "progrpo.selector" -}}
app.kubernetes.io/name: {{ include "progrpo.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "progrpo.labels" -}}
{{ include "progrpo.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: progrpo
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_") }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Takes root, component, name, and labels and annotations of the object's own. */ -}}
{{- define "progrpo.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "progrpo.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Of pods. Istio's sidecar would keep jobs from ending, and its control plane is out of the sandbox's reach. */ -}}
{{- define "progrpo.podMetadata" -}}
labels:
  {{- include "progrpo.labels" . | nindent 2 }}
  sidecar.istio.io/inject: "false"
{{- with .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "progrpo.registry" -}}
{{- .Values.global.imageRegistry | default .Values.images.registry | trimSuffix "/" -}}
{{- end -}}

{{- /* Takes root and image, "cpu" or "gpu". */ -}}
{{- define "progrpo.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- $name := printf "%s/%s" (include "progrpo.registry" .root) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "progrpo.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "progrpo.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "progrpo.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* What all CPU pods of the chart have in common. Takes root. */ -}}
{{- define "progrpo.podSpec" -}}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  {{- include "progrpo.podSecurityContext" .root | nindent 2 }}
{{- include "progrpo.pullSecrets" .root }}
{{- with .root.Values.pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.pods.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.pods.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "progrpo.container" -}}
image: {{ include "progrpo.image" (dict "root" .root "image" (.image | default "cpu")) }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  {{- include "progrpo.securityContext" .root | nindent 2 }}
resources:
  {{- toYaml .resources | nindent 2 }}
{{- end -}}

{{- /* The services as compiled pipelines name them to their pods: a platform has variables of none of these names. */ -}}
{{- define "progrpo.servicesEnv" -}}
{{- $defaults := dict "PROGRPO_MLFLOW_TRACKING_URI" "MLFLOW_TRACKING_URI" "PROGRPO_S3_ENDPOINT_URL" "AWS_ENDPOINT_URL" "PROGRPO_S3_REGION" "AWS_REGION" "PROGRPO_S3_URI" "PROGRPO_S3_URI" "PROGRPO_SANDBOX_URL" "PROGRPO_SANDBOX_URL" -}}
{{- $s3 := dict "PROGRPO_S3_ACCESS_KEY_ID" "AWS_ACCESS_KEY_ID" "PROGRPO_S3_SECRET_ACCESS_KEY" "AWS_SECRET_ACCESS_KEY" -}}
{{- $mlflow := dict "PROGRPO_MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_USERNAME" "PROGRPO_MLFLOW_TRACKING_PASSWORD" "MLFLOW_TRACKING_PASSWORD" "PROGRPO_MLFLOW_TRACKING_TOKEN" "MLFLOW_TRACKING_TOKEN" -}}
{{- range $source := list (list "configMapKeyRef" "progrpo-defaults" $defaults) (list "secretKeyRef" "progrpo-s3" $s3) (list "secretKeyRef" "progrpo-mlflow" $mlflow) }}
{{- range $variable, $key := last $source }}
- name: {{ $variable }}
  valueFrom:
    {{ first $source }}: {name: {{ index $source 1 }}, key: {{ $key }}, optional: true}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The root file system is read-only; the image's caches are in /cache. */ -}}
{{- define "progrpo.scratchMounts" -}}
- {name: scratch, mountPath: /tmp}
- {name: scratch, mountPath: /cache}
{{- end -}}

{{- define "progrpo.caEnv" -}}
{{- if .Values.caBundle.configMap }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" }}
- name: {{ . }}
  value: /etc/progrpo/ca/{{ $.Values.caBundle.key }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "progrpo.caMount" -}}
{{- if .Values.caBundle.configMap }}
- name: ca
  mountPath: /etc/progrpo/ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "progrpo.caVolume" -}}
{{- if .Values.caBundle.configMap }}
- name: ca
  configMap:
    name: {{ .Values.caBundle.configMap }}
{{- end }}
{{- end -}}

{{- /* The Kubeflow Pipelines API: a token made for it alone, which cannot be used at the Kubernetes API. */ -}}
{{- define "progrpo.kfpEnv" -}}
{{- if .Values.kfp.existingSecret }}
- name: KFP_EXISTING_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.kfp.existingSecret }}, key: token}
{{- else if .Values.kfp.tokenAudience }}
- name: KF_PIPELINES_SA_TOKEN_PATH
  value: /var/run/secrets/kubeflow/pipelines/token
{{- end }}
{{- end -}}

{{- define "progrpo.kfpMount" -}}
{{- if and .Values.kfp.tokenAudience (not .Values.kfp.existingSecret) }}
- name: kfp-token
  mountPath: /var/run/secrets/kubeflow/pipelines
  readOnly: true
{{- end }}
{{- end -}}

{{- define "progrpo.kfpVolume" -}}
{{- if and .Values.kfp.tokenAudience (not .Values.kfp.existingSecret) }}
- name: kfp-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ .Values.kfp.tokenAudience }}
          expirationSeconds: 3600
{{- end }}
{{- end -}}

{{- /* "true" if Kubeflow Trainer's parts are wanted and, for auto, there. */ -}}
{{- define "progrpo.trainJobs" -}}
{{- $mode := .Values.trainJobs.mode -}}
{{- if or (eq $mode "always") (and (eq $mode "auto") (.Capabilities.APIVersions.Has "trainer.kubeflow.org/v1alpha1")) -}}
true
{{- end -}}
{{- end -}}

{{- define "progrpo.sandboxUrl" -}}
http://{{ include "progrpo.fullname" . }}-sandbox.{{ .Release.Namespace }}.svc:8080
{{- end -}}

{{- /* What a schema cannot say because it takes two values. */ -}}
{{- define "progrpo.check" -}}
{{- $values := .Values -}}
{{- if and $values.trainJobs.pool (not (hasKey $values.gpuPools $values.trainJobs.pool)) -}}
{{- fail (printf "trainJobs.pool is %q, but gpuPools has %s. Name one of them, or leave it empty." $values.trainJobs.pool (keys $values.gpuPools | sortAlpha | join ", " | default "none")) -}}
{{- end -}}
{{- if and $values.kueue.localQueue.enabled (not $values.kueue.localQueue.clusterQueue) -}}
{{- fail "kueue.localQueue.enabled needs kueue.localQueue.clusterQueue, the cluster queue behind it (kubectl get clusterqueues)." -}}
{{- end -}}
{{- if and $values.networkPolicy.runs (not $values.networkPolicy.enabled) -}}
{{- fail "networkPolicy.runs does nothing without networkPolicy.enabled: set both, or neither." -}}
{{- end -}}
{{- if and $values.cache.existingClaim (not $values.cache.enabled) -}}
{{- fail "cache.existingClaim does nothing without cache.enabled: set both, or neither." -}}
{{- end -}}
{{- range $image := list "cpu" "gpu" -}}
{{- if eq (index $values.images $image).tag "latest" -}}
{{- fail (printf "images.%s.tag is latest, which says no version. Give one, or a digest, or leave it empty for %s." $image $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- range $label, $_ := $values.commonLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (eq "helm.sh/chart" $label) -}}
{{- fail (printf "commonLabels has %s, which the chart sets itself. Choose a label of your own." $label) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $values.trainJobs.env -}}
{{- if regexMatch "(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|PRIVATE_KEY|ACCESS_KEY|API_?KEY)" $name -}}
{{- fail (printf "trainJobs.env.%s looks like a secret, and many can read it there. Put it into Secret progrpo-s3 or progrpo-mlflow." $name) -}}
{{- end -}}
{{- if has $name (list "AWS_ENDPOINT_URL" "AWS_REGION" "HOME" "MLFLOW_TRACKING_URI" "PROGRPO_MLFLOW_TRACKING_URI" "PROGRPO_S3_ENDPOINT_URL" "PROGRPO_S3_REGION" "PROGRPO_SANDBOX_URL" "TMPDIR") -}}
{{- fail (printf "trainJobs.env.%s is set by the chart itself, from mlflow, s3 or sandbox. Set that instead." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
