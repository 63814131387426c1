{{- define "coco.labels" -}}
app.kubernetes.io/name: coco
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "coco.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end }}

{{- /* The labels that a handler's nodes need beside coco.dev/runtime. */ -}}
{{- define "coco.needs" -}}
{{- if hasSuffix "snp" . }}, coco.dev/snp: "true"{{ else if hasSuffix "tdx" . }}, coco.dev/tdx: "true"{{ else if eq "coco-clh" . }}, coco.dev/kvm: "true"{{ end }}
{{- end }}
