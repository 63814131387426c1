// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/coco-shim/coco/hypervisor"
)

// ErrEnded says that the VMM has ended.
var ErrEnded = errors.New("the VMM has ended")

// Dial connects to a port of the guest. It waits until the guest accepts connections, the VM ends or ctx ends. The
// first success moves the VM into phase run.
func (l *Life) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	dctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the call
		select {
		case <-l.Proc.Done():
			cancel(ErrEnded)
		case <-stop:
		}
	}()
	c, err := l.control.Connect(dctx, port)
	if err == nil {
		l.Enter(hypervisor.PhaseRun)
		return c, nil
	}
	phase := l.Phase()
	if errors.Is(err, ErrEnded) || l.Dead() {
		select {
		case <-l.done: // soon
			return nil, fmt.Errorf("dial guest port %d: %w", port, l.Err())
		case <-ctx.Done():
		}
	}
	if phase == hypervisor.PhaseRun || ctx.Err() == nil {
		return nil, fmt.Errorf("VM %s: %w", l.Spec.ID, err)
	}
	where := &hypervisor.DeadError{
		VM: l.Spec.ID, Phase: phase, Reason: "the agent has not answered yet", Console: l.Console(),
	}
	return nil, fmt.Errorf("%w: %w", err, where)
}
