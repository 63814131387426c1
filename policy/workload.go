// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strconv"
)

// Workload says what the processes of a container may ask the guest for, over the container's socket and over the
// pod's port (docs/workload-api.md). The zero value opens nothing: the container gets no socket.
type Workload struct {
	// Resources has the secrets of the key broker that the container may fetch, each as "kbs:///repository/type/tag".
	Resources []string `json:"resources,omitempty"`
	Calls     []string `json:"calls,omitempty"` // Call… constants
	// ExportKey adds the private key to a token. With both a process gets every secret that the broker releases to the
	// pod, so Resources no longer bounds what this container gets.
	ExportKey bool `json:"exportKey,omitempty"`
	// Evidence is "" or EvidenceRaw.
	Evidence string `json:"evidence,omitempty"`
	Azure    Azure  `json:"azure,omitzero"`
}

// Calls of Workload.Calls.
const (
	CallInfo     = "info"     // the version of the guest and its type of TEE
	CallToken    = "token"    // an attestation token of the key broker
	CallEvidence = "evidence" // evidence with data of the container's choice
	CallRenew    = "renew"    // the container's files with Secret.Renew are asked for again
)

// EvidenceRaw lets the container choose all bytes of REPORTDATA, as in CoCo. It can then attest to any key broker in
// place of the guest's own client.
const EvidenceRaw = "raw"

// Opens says whether the container may ask for anything.
func (w Workload) Opens() bool { return len(w.Resources)+len(w.Calls) > 0 || w.Azure.Opens() }

// UsesWorkloadAPI says whether any container may ask for anything.
func (p *Policy) UsesWorkloadAPI() bool {
	return slices.ContainsFunc(p.Containers, func(c Container) bool { return c.Workload.Opens() })
}

// maxSocketName is how long the name of a container with a socket may be: that of a DNS label, as in Kubernetes. The
// name stands in the path of a socket, which the kernel bounds.
const maxSocketName = 63

func (p *problems) workload(at string, of *Container) {
	name, w := of.Name, &of.Workload
	if w.Opens() && len(name) > maxSocketName {
		p.add(at, "is of a container whose name has more than %d letters", maxSocketName)
	}
	for i, r := range w.Resources {
		if !isResource(r) {
			p.add(at+".resources["+strconv.Itoa(i)+"]", "%s is no resource such as kbs:///repository/type/tag", clip(r))
		}
	}
	p.once(at+".resources", w.Resources)
	for _, c := range w.Calls {
		p.oneOf(at+".calls", c, CallInfo, CallToken, CallEvidence, CallRenew)
	}
	p.once(at+".calls", w.Calls)
	if slices.Contains(w.Calls, CallRenew) &&
		!slices.ContainsFunc(of.Secrets, func(s Secret) bool { return s.Renew != "" }) {
		p.add(at+".calls", "has %s, and no secret of the container has renew", CallRenew)
	}
	if w.ExportKey && !slices.Contains(w.Calls, CallToken) {
		p.add(at+".exportKey", "is for the call %q, which is not among the calls", CallToken)
	}
	if w.Evidence == "" {
		return
	}
	p.oneOf(at+".evidence", w.Evidence, EvidenceRaw)
	if !slices.Contains(w.Calls, CallEvidence) {
		p.add(at+".evidence", "is for the call %q, which is not among the calls", CallEvidence)
	}
}

// workloadPort checks the port of the pod against the rest of the policy.
func (p *problems) workloadPort(of *Policy) {
	port := of.Pod.WorkloadPort
	if port == 0 {
		return
	}
	if !of.UsesWorkloadAPI() {
		p.add("pod.workloadPort", "is %d, and no container has a workload that opens anything", port)
	}
	if slices.Contains(of.Pod.PortForward, port) {
		p.add("pod.portForward", "has %d, the port of the workload API, which is never forwarded", port)
	}
}
