// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"slices"
	"strings"

	"github.com/coco-shim/coco/policy"
)

// powerful says whether a process with a capability reaches the guest's kernel.
func powerful(k string) bool {
	return k == "CAP_SYS_ADMIN" || k == "CAP_SYS_MODULE" || k == "CAP_SYS_RAWIO"
}

// workload judges the requests that a container may send to the workload API.
func (f *findings) workload(c *policy.Container) {
	w := c.Workload
	if !w.Opens() {
		return
	}
	at := "container " + c.Name
	if len(w.Resources) > 0 {
		f.note(at, "fetches %d secrets of the key broker by itself", len(w.Resources))
	}
	if w.ExportKey {
		f.warn(at, "workload.exportKey is open: with a token and its key it gets all secrets that the broker releases to "+
			"the pod")
	}
	if w.Evidence == policy.EvidenceRaw {
		f.warn(at, "workload.evidence is raw: it can attest to any key broker in the pod's name")
	}
	if len(w.Azure.Calls) > 0 {
		f.warn(at, "workload.azure.calls has %s: with reports or tokens for data of its own it gets all keys that vaults "+
			"release to the pod, whatever workload.azure.keys says", strings.Join(w.Azure.Calls, ", "))
	}
	if c.Allow.Exec.Any {
		f.warn(at, "exec is open: the host can run a program in it that asks for what workload has")
	}
}

// neighbours warns of containers that can send another one's requests to the workload API.
func (f *findings) neighbours(p *policy.Policy) {
	if !p.UsesWorkloadAPI() {
		return
	}
	for _, c := range p.Containers {
		if slices.ContainsFunc(c.Process.Caps.Effective, powerful) {
			f.warn("container "+c.Name, "is privileged, so it gets what workload has in any container of the pod")
		}
	}
}
