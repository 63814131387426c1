// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// Cmdline is the part of the kernel command line that every guest image needs. The image's build writes it
// into the manifest; the shim takes it for an image whose manifest has none. The kernel reads it, and
// launch digests measure it. Its parameters are reasoned in docs/decisions/guest-image.md.
const Cmdline = "console=ttyS0 quiet panic=-1 reboot=t no_timer_check scsi_mod.scan=none cgroup_no_v1=all"

// Parameters of the kernel command line that the agent reads. An administrator writes them into
// hypervisor.kernel_params; in a confidential guest they are measured.
const (
	// ParamLog takes the level of the agent's log on the console: trace, debug, info, warn, error, critical.
	// A confidential guest logs nothing without it.
	ParamLog = "agent.log"
	// ParamModules takes names of kernel modules, separated by commas, that the agent loads at boot.
	ParamModules = "agent.modules"
	// ParamUserns allows user namespaces to processes without privileges.
	ParamUserns = "agent.userns"
	// ParamClosed closes a guest as a confidential one is closed, also where there is no TEE.
	ParamClosed = "agent.closed"
	// ParamPortForward has the agent listen on PortForward. The shim adds it where there is no TEE; a
	// confidential guest has it only if hypervisor.kernel_params says so.
	ParamPortForward = "agent.port_forward"
	// ParamResolver has the agent listen on PortResolver, so that the host answers questions for names. The shim adds it
	// where there is no TEE; a confidential guest has it only if hypervisor.kernel_params says so.
	ParamResolver = "agent.resolver"
	// ParamInitdata takes the digest of the pod's initdata, as "sha256:HEX". The shim adds it where there is no TEE and
	// the pod has initdata. The agent compares initdata with it there, which is a rehearsal: in a TEE it ignores the
	// parameter, and the platform's report has the digest.
	ParamInitdata = "agent.initdata"
	// ParamTemplate has the agent finish the boot, with all modules that it may need later, before it opens the
	// channel: the guest is saved then, and VMs start from what was saved. The driver adds it. Outside a TEE the host
	// may put the guest's clock forward once by as much as TemplateAge.
	ParamTemplate = "agent.template"
)

// TemplateAge is the age up to which a saved guest is used, in seconds.
const TemplateAge = 24 * 60 * 60
