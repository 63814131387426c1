// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"maps"
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

// Pod is what the guest was told before about its pod, as far as containers are compared with it.
type Pod struct {
	Hostname string
	Live     map[string]string // ids of containers that run, by their names in the policy
}

// sharedShm is the storage of the pod's own /dev/shm.
var sharedShm = Storage{
	drivers: []string{contract.DriverEphemeral}, source: "shm", fstype: "tmpfs", at: contract.ShmDir, member: "sharedShm",
	options: []string{"noexec", "nosuid", "nodev", "mode=1777", anySize},
}

// Sandbox compares the request for the sandbox. Its host name becomes a field that containers may refer to.
func (d *Diffs) Sandbox(pod *policy.Pod, req *pb.CreateSandboxRequest) {
	d.Fields[policy.FieldSandboxID] = req.GetSandboxId()
	name := req.GetHostname()
	if !d.Allows(pod.Hostname, name) {
		d.Add("hostname", d.Wanted(pod.Hostname), Quote(name), "hostname.is = "+Quote(name))
	}
	d.Fields[policy.FieldHostname] = name
	d.Texts("sysctls", "sysctls", pod.Sysctls, req.GetSysctls())
	d.dns(pod.DNS, req.GetDns())
	var want []Storage
	if pod.SharedShm {
		want = append(want, sharedShm)
	}
	d.Storages(want, req.GetStorages())
	Fixed(d, "sandbox_pidns", false, req.GetSandboxPidns())
	Fixed(d, "guest_hook_path", "", req.GetGuestHookPath())
	Fixed(d, "kernel_modules", 0, len(req.GetKernelModules()))
}

// dns compares the lines of resolv.conf.
func (d *Diffs) dns(want policy.DNS, got []string) {
	if !want.FromHost {
		d.List("dns", "dns.lines", want.Lines, got)
		return
	}
	for i, line := range got {
		word, _, _ := strings.Cut(line, " ")
		if !policy.HasSyntax(policy.TypeAny, line) ||
			!slices.Contains([]string{"nameserver", "search", "domain", "options"}, word) {
			d.Add(Index("dns", i), "a line of resolv.conf", Quote(line), "")
		}
	}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
