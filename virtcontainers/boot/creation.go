// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"log/slog"
	"os"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/virtcontainers/life"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

// creation is a machine being made, with the results of each step for the next ones.
type creation struct {
	*Machine
	opts   Options
	log    *slog.Logger
	u      *undo.Stack
	vmspec hypervisor.VMSpec
	ground
	attached nic.Attachment

	asksNames bool // the guest asks the engine's resolver

	opened    []*os.File // the boot chains and disks; closed once the VMM has them
	initdata  *os.File   // nil without one
	measuring *measuring // nil where nothing is measured
	verdict   *verdict   // nil without a policy
}

// ground is where the VMM runs.
type ground struct {
	user     uint32 // the VMM's, and nobody else's
	netns    string // path; the launcher's own once it runs
	ownNetNS bool
	leaves   []string           // cgroups that the pod's processes are in
	tpm      hypervisor.Process // nil without a virtual TPM
}

func newCreation(opts Options) *creation {
	return &creation{Machine: &Machine{Life: life.New()}, opts: opts, log: opts.Log, u: &undo.Stack{}}
}

// endOnError undoes all steps if there was an error.
func (c *creation) endOnError(err *error) {
	if *err != nil { // before the undo, which releases resources that this still uses
		c.Life.Cancel(errEnded)
	}
	c.u.RunOnError(err)
	if *err != nil {
		c.Life.End(errEnded)
	}
}
