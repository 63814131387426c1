// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// Names asks the engine's resolver in a pod's network namespace. Package network/nameserver implements it.
type Names interface {
	// Serve answers the questions of a guest that come over c until ctx or the connection ends. It closes c.
	Serve(ctx context.Context, c net.Conn) error
	// Close is idempotent.
	Close() error
}

const maxResolvConf = 64 << 10

// engineNames says whether the only container's resolv.conf names the resolver that its engine has in the network
// namespace.
func engineNames(first *First) (bool, error) {
	if first == nil {
		return false, nil
	}
	i := slices.IndexFunc(first.Spec.Mounts, func(m specs.Mount) bool {
		return request.IsBind(m) && path.Clean(m.Destination) == "/etc/resolv.conf"
	})
	if i < 0 {
		return false, nil
	}
	text, err := hostvolume.ReadNamed(first.Spec.Mounts[i].Source, maxResolvConf)
	if err != nil {
		return false, fmt.Errorf("resolv.conf: %w", err)
	}
	return slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
		return strings.Join(strings.Fields(line), " ") == contract.ResolverLine
	}), nil
}

// AskNames lets the guest ask the engine's resolver if the container's resolv.conf has come to name it since the pod
// was made: Docker 28 writes it after the creation of the task, and before its start.
func (m *Machine) AskNames(ctx context.Context) error { return m.names(ctx) }

// askLate is what AskNames does.
func (c *creation) askLate(ctx context.Context) (err error) {
	if c.asksNames {
		return nil
	}
	if err := c.checkNames(ctx); err != nil || !c.asksNames {
		return err
	}
	if err := c.openNames(ctx); err != nil {
		c.asksNames = false // a second start tries again
		return err
	}
	return nil
}

// checkNames refuses a container whose names its guest would not ask the host for, before the VM boots.
func (c *creation) checkNames(context.Context) error {
	asks, err := engineNames(c.opts.First)
	if err != nil || !asks {
		return err
	}
	if !slices.Contains(strings.Fields(c.vmspec.Boot.Cmdline), contract.ParamResolver) {
		return fmt.Errorf("the container's names are answered by its engine (%s in its resolv.conf), and a confidential "+
			"guest does not ask the host for names unless its measured kernel parameters say so: add %s to "+
			"hypervisor.kernel_params, or use the engine's default network: %w", contract.ResolverLine,
			contract.ParamResolver, errdefs.ErrFailedPrecondition)
	}
	c.asksNames = true
	return nil
}

// openNames lets the guest ask the engine's resolver.
func (c *creation) openNames(ctx context.Context) error {
	c.names = c.askLate
	if !c.asksNames {
		return nil
	}
	if c.opts.Host.Names == nil {
		return fmt.Errorf("this host asks no resolver of an engine: %w", errdefs.ErrNotImplemented)
	}
	names, err := c.opts.Host.Names(c.netns)
	if err != nil {
		return err
	}
	conn, err := c.Agent.DialResolver(ctx)
	if err != nil {
		return errors.Join(err, names.Close())
	}
	log, pod, ended := c.log, c.opts.ID, c.ended
	serve := func(ctx context.Context) {
		if err := errors.Join(names.Serve(ctx, conn), names.Close()); err != nil && !ended() {
			log.Warn("the container's names do not resolve any more", "pod", pod, "error", err)
		}
	}
	if !c.Life.Spawn(serve) {
		return errors.Join(errEnded, conn.Close(), names.Close())
	}
	return nil
}
