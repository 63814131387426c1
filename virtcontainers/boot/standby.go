// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/disk"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/likeness"
	"github.com/coco-shim/coco/virtcontainers/state"
	"github.com/coco-shim/coco/virtcontainers/users"
)

// BootsAnyway is the log's line about a pod that could have had a VM that waits; with a reason.
const BootsAnyway = "VM boots, not a standby VM"

// errFewPorts says that a VM that waits has no room for all interfaces of the pod.
var errFewPorts = fmt.Errorf("its network interfaces need more PCIe ports than hypervisor.hotplug_ports: %w",
	errdefs.ErrFailedPrecondition)

// Warm is a VM that has booted before there was a pod for it. It has a user, a cgroup and a network namespace of its
// own, and no interface. It belongs to this process, which becomes the shim of its pod.
type Warm struct {
	Key  string // what Kind says of the VM
	c    *creation
	gone bool // it has a pod, or was ended
}

// Kind returns the key of the VMs that are launched as the pod's would be. The key is a digest over every input of the
// launch, measured or not, and over the whole configuration.
func Kind(ctx context.Context, opts Options) (key string, err error) {
	opts.Host.Judge = nil
	c := newCreation(opts)
	defer func() {
		c.Life.End(errEnded)
		err = errors.Join(err, c.u.Run(ctx))
	}()
	if err := errors.Join(c.decideShape(ctx), c.openBootFiles(ctx)); err != nil {
		return "", err
	}
	return c.kind()
}

// Shape is the size of the pod's VM.
func Shape(o Options) (launch.Shape, error) {
	return launch.ShapeOf(o.Config.Hypervisor, o.Host.Machine, o.Spec)
}

// kind is for the time between the steps openBootFiles and beginMeasuring.
func (c *creation) kind() (string, error) {
	return likeness.Of{
		VM: c.vmspec, Config: c.opts.Config, Rehearse: c.opts.Rehearse, Initdata: c.initdata, Files: c.opened,
	}.Key()
}

// Prepare boots a VM for a pod that may come. Of the specification it uses the annotations and resources that decide
// the VM's size, and the path of a cgroup for the time until then. The bundle is a directory of the VM's own, with its
// journal. On error nothing is left.
func Prepare(ctx context.Context, opts Options) (_ *Warm, err error) {
	opts.Host.Judge, opts.First, opts.Warm, opts.JoinCgroup = nil, nil, nil, false
	c := newCreation(opts)
	w := &Warm{c: c}
	defer c.endOnError(&err)
	for _, s := range []step{
		{"shape", c.decideShape},
		{"boot files", c.openBootFiles},
		{"description", func(context.Context) (err error) { w.Key, err = c.kind(); return err }},
		{"measurement", c.beginMeasuring},
		{"journal", c.openJournal},
		{"network namespace", c.makeNetNS},
		{"user id", c.takeUser},
		{"launcher", c.launch},
		{"cgroups", c.joinCgroups},
		{"virtual tpm", c.serveTPM},
		{"vmm", c.startVMM},
		{"agent", c.hearAgent},
	} {
		if err := s.do(ctx); err != nil {
			return nil, fmt.Errorf("boot a standby VM, %s: %w", s.name, c.orDead(s.name, err))
		}
	}
	return w, nil
}

// hearAgent waits until the guest's agent answers.
func (c *creation) hearAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.vmspec.BootTimeout,
		fmt.Errorf("no answer within hypervisor.boot_timeout of %s: %w", c.vmspec.BootTimeout, context.DeadlineExceeded))
	defer cancel()
	l, err := guest.Connect(ctx, c.VM, c.opts.Config.Runtime.CreateTimeout)
	if err != nil {
		return err
	}
	return l.Close()
}

// Done is closed when the VM has ended.
func (w *Warm) Done() <-chan struct{} { return w.c.VM.Done() }

// MemoryMiB is the VM's memory.
func (w *Warm) MemoryMiB() uint64 { return w.c.Shape.MemoryMiB }

// End ends a VM that got no pod. Nothing is left.
func (w *Warm) End(ctx context.Context) error {
	if w.gone {
		return nil
	}
	w.gone = true
	w.c.Life.End(errEnded)
	return errors.Join(w.c.u.Run(ctx), os.RemoveAll(w.c.opts.Bundle))
}

// leave removes what the VM had on the host before it had a pod. It is idempotent.
func (w *Warm) leave(ctx context.Context) error {
	w.gone = true
	w.c.Life.End(errEnded)
	j, err := state.Load(w.c.opts.Bundle)
	if errors.Is(err, state.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := cgroups.Remove(ctx, j.Cgroups); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(w.c.StateDir), os.RemoveAll(w.c.opts.Bundle))
}

// checkWarm decides whether the VM that waits becomes the pod's. If not, it is ended, and the pod's VM boots.
func (c *creation) checkWarm(ctx context.Context) error {
	w := c.opts.Warm
	if w == nil {
		return nil
	}
	why := c.unfit(w)
	if why == nil {
		c.u.Push("remove what the standby VM had", w.leave)
		return nil
	}
	c.log.Info(BootsAnyway, "pod", c.opts.ID, "reason", why)
	if err := c.opts.endWarm(ctx); err != nil {
		c.log.Error("end a standby VM", "pod", c.opts.ID, "error", err)
	}
	c.opts.Warm = nil
	return nil
}

// endWarm ends a VM that waits and does not become the pod's.
func (o Options) endWarm(ctx context.Context) error {
	if o.Warm == nil {
		return nil
	}
	return o.Warm.End(ctx)
}

// unfit says why a VM cannot become the pod's.
func (c *creation) unfit(w *Warm) error {
	if err := Unfit(c.opts); err != nil {
		return err
	}
	key, err := c.kind()
	if err == nil && key != w.Key {
		err = fmt.Errorf("the VM that waits, %.12s, is not the one that the pod describes, %.12s: %w", w.Key, key,
			errdefs.ErrFailedPrecondition)
	}
	select {
	case <-w.Done():
		err = fmt.Errorf("it has ended: %w", w.c.VM.Err())
	default:
	}
	return err
}

// Unfit says why no VM that waits can become the VM of a pod of one, or of a Kubernetes pod if First is nil.
func Unfit(o Options) error {
	files, err := NeedsFiles(o)
	ns, _ := namespace(o.Spec, specs.NetworkNamespace)
	switch {
	case err != nil:
		return err
	case files:
		return fmt.Errorf("it shows live files of the host, which a VM has from its start: %w", errdefs.ErrFailedPrecondition)
	case ns.Path != "" && o.Spec.Hooks != nil:
		return fmt.Errorf("its hooks would find the VMM outside of the network namespace %s: %w", ns.Path,
			errdefs.ErrFailedPrecondition)
	}
	return nil
}

// inheritUser makes the user of the VM that waits the pod's.
func (c *creation) inheritUser() error {
	w, dir := c.opts.Warm, c.opts.Config.Runtime.StateDir
	c.user = w.c.user
	if err := c.Journal.Update(func(p *state.Pod) { p.User = c.user }); err != nil {
		return err
	}
	c.u.Push("give the user id back", func(context.Context) error {
		return errors.Join(users.Free(dir, c.user, c.opts.Bundle), users.Free(dir, c.user, w.c.opts.Bundle))
	})
	return users.Give(dir, c.user, w.c.opts.Bundle, c.opts.Bundle)
}

// adopt makes the VM that waits the pod's: it gets the pod's interfaces. Disks are plugged in when the containers are
// made.
func (c *creation) adopt(ctx context.Context) error {
	w, begun := c.opts.Warm, time.Now()
	c.VM = w.c.VM
	c.u.Push("stop the VM", c.VM.Stop)
	c.Disks = disk.New(c.VM, c.Journal, c.opts.Config.Runtime, c.opts.alone())
	pids := []int{c.Place.PID()}
	if c.tpm != nil {
		pids = append(pids, c.tpm.PID())
	}
	if err := cgroups.SpareLikeSelf(pids); err != nil {
		return err
	}
	if err := w.leave(ctx); err != nil {
		return err
	}
	plugger, ok := c.VM.(hypervisor.NICPlugger)
	if !ok {
		return fmt.Errorf("VM %s takes no interface while it runs: %w", c.VM.ID(), errdefs.ErrNotImplemented)
	}
	for _, n := range c.attached.NICs {
		nic := hypervisor.NIC{ID: n.Name, MAC: n.MAC, Tap: n.Files, MTU: n.MTU}
		if _, err := plugger.PlugNIC(ctx, nic); errdefs.IsFailedPrecondition(err) {
			return fmt.Errorf("%w: %w", errFewPorts, err)
		} else if err != nil {
			return err
		}
	}
	c.log.Info("pod has a standby VM", "pod", c.opts.ID, "vm", c.VM.ID(), "took", time.Since(begun))
	return c.closeFiles()
}
