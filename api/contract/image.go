// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// Files of the guest image that the image's build writes for the agent.
const (
	// ModulesFile lists kernel modules in load order, a section at a time. Package agent/boot describes its
	// format.
	ModulesFile = "/etc/coco/modules"
	// AliasesFile lists under which names the kernel asks for modules of SectionDemand, a pattern and a
	// module per line.
	AliasesFile = "/etc/coco/aliases"
)

// OCI runtimes that an image may carry. The image's build packs one of them, the agent runs it.
const (
	CrunFile = "/usr/bin/crun"
	RuncFile = "/usr/sbin/runc"
)

// Sections of ModulesFile, as "# boot" begins one. They say when the agent loads a module.
const (
	SectionBoot   = "boot"   // before the channel to the host opens
	SectionRootfs = "rootfs" // right after, while the agent already serves
	SectionLazy   = "lazy"   // when a request needs it
	SectionReport = "report" // in a TEE, at boot: access to its reports
	SectionDemand = "demand" // when a container with the rights for it uses it
)
