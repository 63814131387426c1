// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"fmt"
	"strings"
)

// Phase is a step of a VM's start, as errors and metrics name it.
type Phase string

// The phases, in order.
const (
	PhaseVMM    Phase = "vmm"    // the VMM process starts and answers on its control socket
	PhaseKernel Phase = "kernel" // firmware and kernel, until the agent opens the channel
	PhaseAgent  Phase = "agent"  // the agent is up and answers
	PhaseRun    Phase = "run"    // the pod runs
)

// ConsoleLines is how many of the guest's last console lines an error carries.
const ConsoleLines = 15

// DeadError says that the VM ended or did not come up: in which phase, why, and what the
// guest printed last.
type DeadError struct {
	VM      string   // sandbox id
	Phase   Phase    // phase that was reached
	Reason  string   // "VMM ended: signal: killed", "no answer within 60s", …
	Stderr  string   // tail of the VMM's standard error, may be empty
	Console []string // last console lines, may be empty
}

// Error renders the whole story: the reason first, then the VMM's words and the console.
func (e *DeadError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vm %s, phase %s: %s", e.VM, e.Phase, e.Reason)
	if s := strings.TrimSpace(e.Stderr); s != "" {
		fmt.Fprintf(&b, "; VMM says: %s", s)
	}
	if len(e.Console) == 0 {
		b.WriteString("; the guest printed nothing on its console")
		return b.String()
	}
	b.WriteString("; last console lines:")
	for _, l := range e.Console {
		b.WriteString("\n  | ")
		b.WriteString(l)
	}
	return b.String()
}
