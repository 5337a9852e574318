{{- define "progrpo-serve.fullname" -}}
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

{{/* What selects pods never changes: the selector of a Deployment is immutable. Give (list $ COMPONENT). */}}
{{- define "progrpo-serve.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Values.nameOverride | default $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Give (list $ COMPONENT). */}}
{{- define "progrpo-serve.labels" -}}
{{- $root := index . 0 -}}
{{ include "progrpo-serve.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: progrpo
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Without versions, so that an upgrade of the chart alone does not load the weights again. Give (list $ COMPONENT). */}}
{{- define "progrpo-serve.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "progrpo-serve.selectorLabels" . }}
app.kubernetes.io/part-of: progrpo
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object. Give (list $ COMPONENT NAME [ANNOTATIONS]). */}}
{{- define "progrpo-serve.metadata" -}}
{{- $root := index . 0 -}}
{{- $annotations := $root.Values.commonAnnotations -}}
{{- if gt (len .) 3 -}}
{{- $annotations = merge (dict) (index . 3) $annotations -}}
{{- end -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "progrpo-serve.labels" (list $root (index . 1)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Give (list $ IMAGE). */}}
{{- define "progrpo-serve.image" -}}
{{- $root := index . 0 -}}
{{- with index . 1 -}}
{{- if has .tag (list "latest" "nightly" "main") -}}{{ fail (printf "the tag %s of %s means another image every day: give a version" .tag .repository) }}{{- end -}}
{{- printf "%s/%s:%s" ($root.Values.global.imageRegistry | default .registry) .repository (.tag | default $root.Chart.AppVersion) -}}
{{- with .digest }}@{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "progrpo-serve.imagePullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "progrpo-serve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "progrpo-serve.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Give (list $ UID); the files of a volume belong to the same group. */}}
{{- define "progrpo-serve.podSecurityContext" -}}
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

{{- define "progrpo-serve.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The directory that vLLM loads. */}}
{{- define "progrpo-serve.modelPath" -}}
{{- if eq .Values.model.source "pvc" -}}
{{- printf "/model/%s" .Values.model.pvc.path | trimSuffix "/" -}}
{{- else if and (eq .Values.model.source "oci") (eq .Values.model.oci.mode "volume") -}}
{{- printf "/model/%s" .Values.model.oci.path | trimSuffix "/" -}}
{{- else -}}
/model/checkpoint
{{- end -}}
{{- end -}}

{{/* Whether the checkpoint is fetched over the network when a pod starts; empty is no. */}}
{{- define "progrpo-serve.fetches" -}}
{{- if has .Values.model.source (list "mlflow" "s3") }}true{{ end -}}
{{- end -}}

{{/* What the values' schema cannot say. */}}
{{- define "progrpo-serve.check" -}}
{{- with .Values.model -}}
{{- if and (eq .source "s3") (not .s3.uri) -}}{{ fail "model.source is s3: set model.s3.uri to s3://BUCKET/KEY of a checkpoint" }}{{- end -}}
{{- if and (eq .source "pvc") (not .pvc.claim) -}}{{ fail "model.source is pvc: set model.pvc.claim to the claim that holds the checkpoint" }}{{- end -}}
{{- if eq .source "oci" -}}
{{- if not .oci.reference -}}{{ fail "model.source is oci: set model.oci.reference to the image that holds the checkpoint" }}{{- end -}}
{{- if not (or (contains "@sha256:" .oci.reference) (regexMatch ":[^/]+$" .oci.reference)) -}}{{ fail (printf "model.oci.reference is %s: add a tag or a digest" .oci.reference) }}{{- end -}}
{{- if hasSuffix ":latest" .oci.reference -}}{{ fail "model.oci.reference ends in latest, which means another image every day: give a version" }}{{- end -}}
{{- if and (eq .oci.mode "volume") (semverCompare "<1.33.0-0" $.Capabilities.KubeVersion.Version) -}}
{{ fail (printf "model.oci.mode is volume, but Kubernetes %s mounts no images (1.33 does). Set it to copy" $.Capabilities.KubeVersion.Version) }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $own := dict "api-key" "apiKey.existingSecret" "model" "model.source" "host" "service" "port" "service" "served-model-name" "model.servedName" "tensor-parallel-size" "gpu.count" "gpu-memory-utilization" "vllm.gpuMemoryUtilization" "max-model-len" "vllm.maxModelLen" "max-num-seqs" "vllm.maxNumSeqs" "dtype" "vllm.dtype" "shutdown-timeout" "rollout.drainSeconds" -}}
{{- range .Values.vllm.extraArgs -}}
{{- $name := regexReplaceAll "=.*" . "" | trimPrefix "--" | replace "_" "-" -}}
{{- if hasPrefix "--" . -}}
{{- if hasKey $own $name -}}{{ fail (printf "vllm.extraArgs has --%s, which has a value of its own: set %s" $name (get $own $name)) }}{{- end -}}
{{- if eq $name "trust-remote-code" -}}{{ fail "vllm.extraArgs has --trust-remote-code: code that comes with a model is never run" }}{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if ne .type "none" -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}{{ fail (printf "autoscaling.minReplicas %v is more than maxReplicas %v" .minReplicas .maxReplicas) }}{{- end -}}
{{- if and (eq .type "keda") (not .prometheusUrl) -}}{{ fail "autoscaling.type is keda: set autoscaling.prometheusUrl to the URL of Prometheus" }}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A variable of ours, which no platform sets: (name, value, or else ConfigMap and its key). */ -}}
{{- define "progrpo-serve.setting" -}}
{{- if index . 1 -}}
- name: {{ index . 0 }}
  value: {{ index . 1 }}
{{- else if index . 2 -}}
- name: {{ index . 0 }}
  valueFrom:
    configMapKeyRef: {name: {{ index . 2 }}, key: {{ index . 3 }}, optional: true}
{{- end -}}
{{- end -}}

{{- /* The same from a Secret: (name, Secret or "", key). */ -}}
{{- define "progrpo-serve.credential" -}}
{{- if index . 1 -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 2 }}, optional: true}
{{- end -}}
{{- end -}}
