// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kubepod

import "strings"

// The keys of Kubernetes 1.37 (k8s.io/api v0.37).
var (
	metadataKeys = strings.Fields(`name generateName namespace selfLink uid resourceVersion generation creationTimestamp
		deletionTimestamp deletionGracePeriodSeconds labels annotations ownerReferences finalizers managedFields`)

	podKeys = strings.Fields(
		`volumes initContainers containers ephemeralContainers restartPolicy terminationGracePeriodSeconds
		activeDeadlineSeconds dnsPolicy nodeSelector serviceAccountName serviceAccount automountServiceAccountToken nodeName
		hostNetwork hostPID hostIPC shareProcessNamespace securityContext imagePullSecrets hostname subdomain affinity
		schedulerName tolerations hostAliases priorityClassName priority dnsConfig readinessGates runtimeClassName
		enableServiceLinks preemptionPolicy overhead topologySpreadConstraints setHostnameAsFQDN os hostUsers schedulingGates
		resourceClaims resources hostnameOverride workloadRef schedulingGroup evictionResponders`)

	containerKeys = strings.Fields(
		`name image command args workingDir ports envFrom env resources resizePolicy restartPolicy
		restartPolicyRules volumeMounts volumeDevices livenessProbe readinessProbe startupProbe lifecycle
		terminationMessagePath terminationMessagePolicy imagePullPolicy securityContext stdin stdinOnce tty`)

	templateKeys = []string{"metadata", "spec"}

	deploymentKeys = strings.Fields("replicas selector template strategy minReadySeconds revisionHistoryLimit paused " +
		"progressDeadlineSeconds")
	statefulSetKeys = strings.Fields("replicas selector template volumeClaimTemplates serviceName podManagementPolicy " +
		"updateStrategy revisionHistoryLimit minReadySeconds persistentVolumeClaimRetentionPolicy ordinals")
	daemonSetKeys  = strings.Fields("selector template updateStrategy minReadySeconds revisionHistoryLimit")
	replicaSetKeys = strings.Fields("replicas minReadySeconds selector template")
	jobKeys        = strings.Fields(
		`parallelism completions activeDeadlineSeconds podFailurePolicy successPolicy backoffLimit
		backoffLimitPerIndex maxFailedIndexes failedPodsLimit selector manualSelector template ttlSecondsAfterFinished
		completionMode suspend podReplacementPolicy managedBy scheduling`)
	cronJobKeys = strings.Fields("schedule timeZone startingDeadlineSeconds concurrencyPolicy suspend jobTemplate " +
		"successfulJobsHistoryLimit failedJobsHistoryLimit")
)

// step is a key on the way from an object to its pods' template, and the keys of what it holds.
type step struct {
	key   string
	known []string
}

// workload is a kind that makes pods.
type workload struct {
	version string
	path    []step
}

func templated(version string, spec []string) workload {
	return workload{version, []step{{"spec", spec}, {"template", templateKeys}}}
}

var workloads = map[string]workload{
	"Pod":                   {"v1", nil},
	"ReplicationController": templated("v1", replicaSetKeys),
	"ReplicaSet":            templated("apps/v1", replicaSetKeys),
	"Deployment":            templated("apps/v1", deploymentKeys),
	"StatefulSet":           templated("apps/v1", statefulSetKeys),
	"DaemonSet":             templated("apps/v1", daemonSetKeys),
	"Job":                   templated("batch/v1", jobKeys),
	"CronJob": {"batch/v1", []step{
		{"spec", cronJobKeys}, {"jobTemplate", templateKeys}, {"spec", jobKeys}, {"template", templateKeys},
	}},
}

// others are kinds that often lie in the same file and make no pods.
var others = strings.Fields(
	`Namespace Service ServiceAccount ConfigMap Secret PersistentVolumeClaim PersistentVolume StorageClass
	Ingress IngressClass NetworkPolicy Role RoleBinding ClusterRole ClusterRoleBinding RuntimeClass HorizontalPodAutoscaler
	PodDisruptionBudget ResourceQuota PriorityClass CustomResourceDefinition Lease EndpointSlice Endpoints`)
