// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// Prefixes of the keys below; a key under one of them is spelled in this file only.
const (
	criPrefix  = "io.kubernetes.cri."
	crioPrefix = "io.kubernetes.cri-o."
)

// Annotations of containerd's CRI plugin. containerd writes them into a container's specification, and the
// shim into that of a sandbox that it got through the sandbox API, so that both have the same shape. The
// shim reads them on the host; `coco measure --pod` writes those of the resources ahead. Resources are sums
// over the pod's containers.
const (
	CRIContainerType       = criPrefix + "container-type" // "sandbox" or "container"
	CRIContainerName       = criPrefix + "container-name"
	CRIImageName           = criPrefix + "image-name"
	CRISandboxID           = criPrefix + "sandbox-id"
	CRISandboxName         = criPrefix + "sandbox-name"
	CRISandboxUID          = criPrefix + "sandbox-uid"
	CRISandboxNamespace    = criPrefix + "sandbox-namespace"
	CRISandboxLogDirectory = criPrefix + "sandbox-log-directory"
	CRISandboxMemory       = criPrefix + "sandbox-memory"     // bytes, 0: none
	CRISandboxCPUQuota     = criPrefix + "sandbox-cpu-quota"  // µs per period, ≤ 0: none
	CRISandboxCPUPeriod    = criPrefix + "sandbox-cpu-period" // µs
	CRISandboxCPUShares    = criPrefix + "sandbox-cpu-shares" // 1024 per requested CPU
)

// Annotations of CRI-O, which writes them for the same purposes.
const (
	CRIOContainerType = crioPrefix + "ContainerType" // "sandbox" or "container"
	CRIOSandboxID     = crioPrefix + "SandboxID"
	CRIOLabels        = crioPrefix + "Labels"            // JSON of the CRI's labels, PodUID among them
	CRIOPodResources  = crioPrefix + "PodLinuxResources" // JSON of CRI's LinuxContainerResources
	// CRIOPodResourcesNew is the name of CRIOPodResources in later releases.
	CRIOPodResourcesNew = "pod-linux-resources.crio.io"
)

// Keys of kubelet.
const (
	// PodUID is a label of the CRI that kubelet sets; engines copy it into a container's annotations.
	PodUID = "io.kubernetes.pod.uid"
	// TerminationMessagePath names the file of a container that kubelet reads after its exit. The shim
	// writes it into the specification that the agent gets; the agent keeps the file of an exited container
	// readable for it.
	TerminationMessagePath = "io.kubernetes.container.terminationMessagePath"
)

// ConfigPrefix stands before "section.key" of the configuration in a pod's annotation. A pod's author
// writes such an annotation; the shim and `coco measure --pod` obey it as far as runtime.enable_annotations
// allows.
const ConfigPrefix = "io.coco.config."

// KataConfigPrefix stands before what Kata's annotations configure. A pod's author writes them; the shim
// obeys those that have a counterpart of ours, and notes the others.
const KataConfigPrefix = "io.katacontainers.config."

// Annotations of Kata's that coco knows by themselves. The shim takes both out of what it sends to the
// guest.
const (
	// KataInitdata carries a pod's initdata: base64 of gzip of the document. The launch is bound to it.
	KataInitdata = KataConfigPrefix + "hypervisor.cc_init_data"
	// KataPolicy carries a policy for Kata's agent.
	KataPolicy = KataConfigPrefix + "agent.policy"
)
