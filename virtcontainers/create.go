// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/internal/rlimit"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
	"github.com/coco-shim/coco/virtcontainers/disk"
	"github.com/coco-shim/coco/virtcontainers/nic"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/state"
	"github.com/coco-shim/coco/virtcontainers/turns"
)

// creation is a pod being created, with the results of each step for the next ones.
type creation struct {
	*Pod
	u        *undo.Stack
	shape    launch.Shape
	vmspec   hypervisor.VMSpec
	stateDir string
	user     uint32 // the VMM's, and nobody else's
	netns    string // path; the launcher's own once it runs
	ownNetNS bool
	leaves   []string // cgroups that the pod's processes are in
	attached nic.Attachment

	opened    []*os.File // the boot chains and disks; closed once the VMM has them
	initdata  *os.File   // nil without one
	measuring *measuring // nil where nothing is measured
}

// step is one phase of a pod's start. Each pushes its own undo.
type step struct {
	name string
	do   func(context.Context) error
}

// CreatePod makes a pod: its VM runs, the agent answers and the sandbox is set up. On error nothing is
// left, and the error names the step.
func CreatePod(ctx context.Context, opts Options) (_ *Pod, err error) {
	if err := checkOptions(&opts); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", opts.ID, err)
	}
	p := &Pod{
		opts: opts, log: opts.Log, life: newLife(),
		containers: map[string]*Container{}, done: make(chan struct{}), stopping: lock.New(), doom: make(chan error, 1),
		creates:   turns.New("creations of containers", createsAtOnce, startsWaiting),
		sharedShm: needsSharedShm(opts), began: time.Now(),
	}
	c := &creation{Pod: p, u: &undo.Stack{}}
	defer func() {
		if err != nil { // before the undo, which releases resources that this still uses
			p.life.cancel(errShutdown)
		}
		c.u.RunOnError(&err)
		if err != nil {
			p.life.end(errShutdown)
		}
	}()
	for _, s := range c.steps() {
		start := time.Now()
		if err := s.do(ctx); err != nil {
			return nil, fmt.Errorf("create pod %s, %s: %w", opts.ID, s.name, c.orDead(s.name, err))
		}
		p.recordPodStep(s.name, start)
	}
	p.mu.Lock()
	p.startTook = time.Since(p.began)
	p.mu.Unlock()
	p.undo.Adopt(c.u)
	p.undo.Push("remove disks", p.disks.RemoveAll)
	p.logPhases()
	p.life.spawn(p.watchOOM)
	p.life.spawn(p.watchPulse)
	p.nics.Follow()
	return p, nil
}

func (c *creation) steps() []step {
	return []step{
		{"shape", c.decideShape},
		{"layers", c.beginLayers},
		{"boot files", c.openBootFiles},
		{"measurement", c.beginMeasuring},
		{"journal", c.openJournal},
		{"network namespace", c.makeNetNS},
		{"user id", c.takeUser},
		{"launcher", c.launch},
		{"cgroups", c.joinCgroups},
		{"hooks", c.runHooks},
		{"network", c.attachNetwork},
		{"live files", c.serveFiles},
		{"vmm", c.startVMM},
		{"agent", c.awaitAgent},
		{"guest network", c.bootNetwork},
		{"sandbox", c.createSandbox},
		{"localhost", c.openLocalhost},
		{"metrics", c.serveMetrics},
	}
}

// checkOptions refuses early what cannot become a pod.
func checkOptions(o *Options) error {
	if !validID(o.ID) {
		return fmt.Errorf("pod id %q: %w", o.ID, errBadID)
	}
	if err := o.Host.check(); err != nil {
		return err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Spec == nil || o.Spec.Linux == nil {
		return fmt.Errorf("the specification has no linux section: %w", errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(o.Bundle) {
		return fmt.Errorf("the bundle %q is not an absolute path: %w", o.Bundle, errdefs.ErrInvalidArgument)
	}
	if err := request.CheckPod(o.Spec, o.First != nil); err != nil {
		return err
	}
	if o.First == nil {
		return nil
	}
	// A container that the guest could not run is refused before a VM is booted for it.
	if _, err := share.Plan(o.Config, o.First.share()); err != nil {
		return err
	}
	out, err := request.Convert(request.Input{ID: o.First.ID, Spec: o.First.Spec, SharedShm: needsSharedShm(*o)})
	if err == nil && out.SandboxPidNS {
		ns, _ := namespace(o.First.Spec, specs.PIDNamespace)
		err = fmt.Errorf("linux.namespaces: the pid namespace %s is one of the host, which a VM cannot join: %w", ns.Path,
			errdefs.ErrInvalidArgument)
	}
	return err
}

func namespace(s *specs.Spec, kind specs.LinuxNamespaceType) (specs.LinuxNamespace, bool) {
	i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
	if i < 0 {
		return specs.LinuxNamespace{}, false
	}
	return s.Linux.Namespaces[i], true
}

// needsSharedShm says whether the pod has a /dev/shm that its containers bind: always when containers
// come later, else when the one container does.
func needsSharedShm(o Options) bool {
	if o.First == nil {
		return true
	}
	return slices.ContainsFunc(o.First.Spec.Mounts, func(m specs.Mount) bool {
		return request.IsBind(m) && filepath.Clean(m.Destination) == "/dev/shm"
	})
}

func (c *creation) decideShape(context.Context) (err error) {
	if c.rlimits, err = defaultRlimits(c.opts.Config.Runtime.Rlimits); err != nil {
		return err
	}
	c.shape, err = launch.ShapeOf(c.opts.Config.Hypervisor, c.opts.Host.Machine, c.opts.Spec)
	return err
}

// beginLayers starts the search for the first container's layers, which goes on beside everything
// else.
func (c *creation) beginLayers(context.Context) error {
	if c.opts.First == nil {
		return nil
	}
	req, err := c.opts.First.layers()
	if err != nil {
		return err
	}
	o, err := c.search(req)
	if err != nil {
		return err
	}
	c.first = o
	c.u.Push("give the layers up", func(context.Context) error {
		c.mu.Lock()
		o := c.first
		c.first = nil
		c.mu.Unlock()
		if o == nil {
			return nil
		}
		return o.Close()
	})
	return nil
}

// openBootFiles opens the boot chain once: these descriptors are what is measured and launched.
func (c *creation) openBootFiles(context.Context) error {
	boot, err := c.openBoot(c.opts.Config)
	if err != nil {
		return err
	}
	for _, f := range bootfiles.Files(boot) {
		if err := readableByAll(f); err != nil {
			return err
		}
	}
	plan, err := launch.For(c.opts.launchInput(c.opts.Config, boot))
	if err != nil {
		return err
	}
	c.vmspec = plan.VM
	return c.addInitdata(plan.Initdata)
}

// readableByAll refuses a boot file that the VMM, which opens it again as a user of its own, could not read.
func readableByAll(f *os.File) error {
	st, err := f.Stat()
	if err == nil && st.Mode().Perm()&0o004 == 0 {
		err = fmt.Errorf("%s cannot be read by the VMM, which runs as a user of its own: chmod o+r %[1]s: %w", f.Name(),
			errdefs.ErrFailedPrecondition)
	}
	return err
}

// openBoot opens the boot chain of a configuration.
func (c *creation) openBoot(cfg configs.Config) (boot hypervisor.Boot, err error) {
	if err := cfg.CheckFiles(); err != nil {
		return boot, err
	}
	files, err := cfg.Hypervisor.Boot()
	if err != nil {
		return boot, err
	}
	if boot, err = bootfiles.Open(files); err != nil {
		return boot, err
	}
	c.u.Push("close the boot files", func(context.Context) error { return bootfiles.Close(boot) })
	c.opened = append(c.opened, bootfiles.Files(boot)...)
	return boot, nil
}

func closeOnce(f *os.File) error {
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// stateDirName is the pod's directory below runtime.state_dir: short, because paths of sockets are
// bounded, and the same for the same pod, so that two of one id collide.
func stateDirName(namespace, id string) string {
	sum := sha256.Sum256([]byte(namespace + "\x00" + id))
	return hex.EncodeToString(sum[:12])
}

func (c *creation) openJournal(context.Context) error {
	boot, err := state.BootID()
	if err != nil {
		return err
	}
	root := c.opts.Config.Runtime.StateDir
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	c.stateDir = filepath.Join(root, stateDirName(c.opts.Namespace, c.opts.ID))
	c.journal, err = state.New(c.opts.Bundle, state.Pod{
		ID: c.opts.ID, Namespace: c.opts.Namespace, BootID: boot, StateDir: c.stateDir,
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the bundle %s belongs to a pod already: %w", c.opts.Bundle, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	c.u.Push("remove the journal", func(context.Context) error { return c.journal.Remove() })
	if err := os.Mkdir(c.stateDir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists, so a pod %s in namespace %s runs, or was not cleaned up: %w", c.stateDir, c.opts.ID,
				c.opts.Namespace, errdefs.ErrAlreadyExists)
		}
		return err
	}
	c.u.Push("remove "+c.stateDir, func(context.Context) error { return os.RemoveAll(c.stateDir) })
	return nil
}

// makeNetNS finds the namespace that the specification names, or makes one. One of ours needs no
// name once the launcher lives in it.
func (c *creation) makeNetNS(context.Context) error {
	ns, _ := namespace(c.opts.Spec, specs.NetworkNamespace)
	if ns.Path != "" {
		c.netns = ns.Path
		if _, err := os.Stat(ns.Path); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		return nil
	}
	c.netns, c.ownNetNS = filepath.Join(c.stateDir, "netns"), true
	if err := c.journal.Update(func(p *state.Pod) { p.OwnNetNS = c.netns }); err != nil {
		return err
	}
	path, n := c.netns, c.opts.Host.Network
	if err := n.Make(path); err != nil {
		return err
	}
	c.u.Push("delete the network namespace", func(context.Context) error { return n.Delete(path) })
	return nil
}

// runHooks runs the hooks of the pod's specification; the poststop hooks are due from here on, also
// when the others fail.
func (c *creation) runHooks(ctx context.Context) error {
	h := c.opts.Spec.Hooks
	if h == nil {
		return nil
	}
	if err := c.journal.Update(func(p *state.Pod) {
		p.Hooks, p.Annotations = journalHooks(h.Poststop), c.opts.Spec.Annotations
	}); err != nil {
		return err
	}
	c.u.Push("poststop hooks", func(ctx context.Context) error { return c.runPoststop(ctx) })
	return c.runStartHooks(ctx, c.opts.Spec, c.opts.ID, c.opts.Bundle)
}

func (c *creation) attachNetwork(ctx context.Context) (err error) {
	standby := c.ownNetNS && c.opts.First != nil
	c.attached, err = c.opts.Host.Network.Attach(ctx, c.netns, standby, c.recordRedirects)
	if err != nil {
		return err
	}
	for _, s := range c.attached.Skipped {
		c.log.Info("the guest does not get all of the pod's network", "pod", c.opts.ID, "what", s.What, "why", s.Why)
	}
	c.nics = nic.New(c.attached, nic.Options{
		Pod: c.opts.ID, Log: c.log, Timeout: c.opts.Config.Runtime.CreateTimeout, Late: standby,
		Record: c.recordRedirects, Spawn: c.life.spawn, Ended: c.ended,
	})
	c.u.Push("detach the network", c.nics.Detach)
	for _, n := range c.attached.NICs {
		c.vmspec.NICs = append(c.vmspec.NICs, hypervisor.NIC{ID: n.Name, MAC: n.MAC, Tap: n.Files, MTU: n.MTU})
	}
	return nil
}

func (c *creation) bootNetwork(ctx context.Context) error {
	plugger, _ := c.vm.(hypervisor.NICPlugger) // nil: it takes no interface while it runs
	return c.nics.Boot(ctx, plugger, c.agent)
}

// recordRedirects writes down what is joined with the VM. In a namespace of ours it goes with the VMM's process.
func (c *creation) recordRedirects(made []network.Redirect) error {
	if c.ownNetNS {
		return nil
	}
	return c.journal.Update(func(p *state.Pod) {
		p.NetNS, p.Redirects = c.netns, nil
		for _, r := range made {
			p.Redirects = append(p.Redirects, state.Redirect{Link: r.Link, Tap: r.Tap})
		}
	})
}

// startVMM launches the VM. Layers that are there by now are in it from boot; others are plugged
// later, the boot does not wait for them.
func (c *creation) startVMM(ctx context.Context) error {
	if err := c.finishMeasuring(ctx); err != nil {
		return err
	}
	var first []hypervisor.Block
	if c.first != nil {
		if list, ok := c.first.Ready(); ok {
			first = disk.Blocks(list)
			c.vmspec.Blocks = append(c.vmspec.Blocks, first...)
		} else if err := c.first.Failed(); err != nil {
			return fmt.Errorf("root file system: %w", err)
		}
	}
	if err := c.addUpper(); err != nil {
		return err
	}
	if err := os.Mkdir(c.vmmDir(), 0o700); err != nil {
		return err
	}
	vm, err := c.place.Launch(ctx, c.vmspec)
	if err != nil {
		return err
	}
	c.vm = vm
	c.u.Push("stop the VM", vm.Stop)
	c.disks = disk.New(vm, c.journal, c.opts.Config.Runtime, c.alone())
	var errs []error
	for _, n := range c.attached.NICs {
		errs = append(errs, n.CloseFiles())
	}
	if f := c.vmspec.HostFiles; f != nil { // the server ends with the VMM's
		errs = append(errs, closeOnce(f.Socket))
	}
	for _, f := range append(c.opened, c.initdata) {
		if f != nil {
			errs = append(errs, closeOnce(f))
		}
	}
	errs = append(errs, c.disks.Adopt(first))
	return errors.Join(errs...)
}

// addUpper puts the disk of the only container's writable layer into the VM.
func (c *creation) addUpper() error {
	if c.opts.First == nil {
		return nil
	}
	b, ok, err := disk.AtBoot(c.opts.Config.Runtime, c.alone())
	if err != nil || !ok {
		return err
	}
	c.u.Push("close the writable layer's disk", func(context.Context) error { return closeOnce(b.File) })
	c.opened = append(c.opened, b.File) // closed once the VMM has it
	c.vmspec.Blocks = append(c.vmspec.Blocks, b)
	return nil
}

// defaultRlimits are the limits of processes whose specification names none: the configuration's, then those that
// containerd sets for its children.
func defaultRlimits(configured []string) ([]specs.POSIXRlimit, error) {
	var stated []specs.POSIXRlimit
	for _, s := range configured {
		l, err := configs.ParseRlimit(s)
		if err != nil {
			return nil, fmt.Errorf("runtime.rlimits: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		stated = append(stated, specs.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	host, err := rlimit.Host(os.Getenv(rlimit.Env))
	return request.MergeRlimits(stated, host), err
}
