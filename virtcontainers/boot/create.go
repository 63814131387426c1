// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

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
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/rlimit"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
	"github.com/coco-shim/coco/virtcontainers/disk"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/hooks"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/nic"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/state"
	"github.com/coco-shim/coco/virtcontainers/upper"
)

// Options are the inputs of a boot.
type Options struct {
	ID, Namespace, Bundle string
	Spec                  *specs.Spec
	Config                configs.Config
	Rehearse              *configs.Config // the configuration that Config.Runtime.Rehearse names, or nil
	Initdata              string          // the value of the annotation contract.KataInitdata
	First                 *First          // of a pod of one
	Log                   *slog.Logger
	// JoinCgroup says that this process serves this pod and nothing else: it goes into the pod's cgroup.
	JoinCgroup bool
	Host       Host
	Warm       *Warm // a VM that may become the pod's; nil: the pod's VM boots
	// Step is told each step of the boot that is done, and when it began.
	Step func(name string, began time.Time)
	// Ending reports whether the pod is about to end.
	Ending func() bool
	// Use gets the machine in the last step. Its error undoes all steps.
	Use func(*Machine) error
}

// First is the container of a pod of one: its layers are in the VM from boot when they are there in time.
type First struct {
	share.Request
	Layers layers.Request
}

// Machine is a VM that runs, with its agent and what it holds on the host.
type Machine struct {
	VM       hypervisor.VM
	Place    hypervisor.Pending // where the VM runs
	Agent    *guest.Link
	NICs     *nic.Set
	Disks    *disk.Set
	Volumes  *share.Set
	Files    *LiveFiles   // nil when no files of the host are live
	Upper    *upper.Layer // nil when what the container writes is not kept
	Journal  *state.Journal
	Undo     undo.Stack // releases what the machine holds
	Life     *Life
	StateDir string
	Plan

	later
}

// later is for the only container of a pod of one.
type later struct {
	names func(context.Context) error // AskNames

	mu    sync.Mutex
	first *layers.Search // layers; nil once taken, guarded by mu
}

// Plan is what was decided before the VM was launched.
type Plan struct {
	Shape     launch.Shape
	Expected  *launch.Expected    // nil where no hardware measures the launch
	Rlimits   []specs.POSIXRlimit // of processes for which nobody names them
	SharedShm bool                // the pod has a /dev/shm that its containers bind
	Foresight *Foresight          // nil without a policy
	Pulls     launch.Pulls        // images that the guest pulls
}

// step is one phase of a pod's start. Each pushes its own undo.
type step struct {
	name string
	do   func(context.Context) error
}

// Start boots the VM of a pod: it runs, the agent answers and the sandbox is set up. On error nothing is
// left, and the error names the step.
func Start(ctx context.Context, opts Options) error {
	if err := checkOptions(&opts); err != nil {
		return errors.Join(fmt.Errorf("create pod %s: %w", opts.ID, err), opts.endWarm(ctx))
	}
	err := start(ctx, opts)
	if opts.Warm != nil && errors.Is(err, errFewPorts) { // nothing of it is left
		opts.Log.Info(BootsAnyway, "pod", opts.ID, "reason", err)
		opts.Warm = nil
		err = start(ctx, opts)
	}
	if err != nil {
		err = errors.Join(err, opts.endWarm(ctx))
	}
	return err
}

func start(ctx context.Context, opts Options) (err error) {
	c := newCreation(opts)
	m := c.Machine
	m.SharedShm = needsSharedShm(opts)
	defer c.endOnError(&err)
	for _, s := range c.steps() {
		start := time.Now()
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("create pod %s, %s: %w", opts.ID, s.name, c.orDead(s.name, err))
		}
		opts.Step(s.name, start)
	}
	m.Undo.Adopt(c.u)
	m.Undo.Push("remove disks", m.Disks.RemoveAll)
	return nil
}

func (c *creation) steps() []step {
	return []step{
		{"shape", c.decideShape},
		{"files", c.findUpper},
		{"layers", c.beginLayers},
		{"boot files", c.openBootFiles},
		{"standby", c.checkWarm},
		{"measurement", c.beginMeasuring},
		{"journal", c.openJournal},
		{"network namespace", c.makeNetNS},
		{"user id", c.takeUser},
		{"launcher", c.launch},
		{"cgroups", c.joinCgroups},
		{"hooks", c.runHooks},
		{"names", c.checkNames}, // Docker's hook writes resolv.conf
		{"network", c.attachNetwork},
		{"live files", c.serveFiles},
		{"virtual tpm", c.serveTPM},
		{"policy", c.awaitVerdict},
		{"vmm", c.startVMM},
		{"agent", c.awaitAgent},
		{"guest network", c.bootNetwork},
		{"sandbox", c.createSandbox},
		{"localhost", c.openLocalhost},
		{"resolver", c.openNames},
		{"metrics", func(context.Context) error { return c.opts.Use(c.Machine) }},
	}
}

// checkOptions refuses early what cannot become a pod.
func checkOptions(o *Options) error {
	if err := o.Host.Check(); err != nil {
		return err
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
	if _, err := share.Plan(o.Config, o.First.Request); err != nil {
		return err
	}
	out, err := request.Convert(request.Input{ID: o.First.ID, Spec: o.First.Spec, SharedShm: needsSharedShm(*o)})
	if err == nil && out.SandboxPidNS {
		ns, _ := namespace(o.First.Spec, specs.PIDNamespace)
		err = fmt.Errorf("it asks for the processes of another container (--pid container:…, %s), which run in another "+
			"kernel; give this one a pid namespace of its own, or put both into one pod: %w", ns.Path,
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
	if c.Rlimits, err = defaultRlimits(c.opts.Config.Runtime.Rlimits); err != nil {
		return err
	}
	c.Pulls = launch.PullsOf(c.opts.launchInput(c.opts.Config, hypervisor.Boot{}))
	c.Shape, err = launch.ShapeOf(c.opts.Config.Hypervisor, c.opts.Host.Machine, c.opts.Spec)
	return err
}

// openBootFiles opens the boot chain once: these descriptors are what is measured and launched.
func (c *creation) openBootFiles(context.Context) error {
	boot, err := c.openBoot(c.opts.Config)
	if err != nil {
		return err
	}
	for _, f := range bootfiles.Files(boot) {
		if err := bootfiles.ReadableByAll(f); err != nil {
			return err
		}
	}
	plan, err := launch.For(c.opts.launchInput(c.opts.Config, boot))
	if err != nil {
		return err
	}
	c.vmspec = plan.VM
	if err := c.beginVerdict(plan.Initdata); err != nil {
		return err
	}
	if err := c.addInitdata(plan.Initdata); err != nil {
		return err
	}
	return c.addParts(plan.Parts)
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

// StateDirName is the pod's directory below runtime.state_dir: short, because paths of sockets are
// bounded, and the same for the same pod, so that two of one id collide.
func StateDirName(namespace, id string) string {
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
	c.StateDir = filepath.Join(root, StateDirName(c.opts.Namespace, c.opts.ID))
	c.Journal, err = state.New(c.opts.Bundle, state.Pod{
		ID: c.opts.ID, Namespace: c.opts.Namespace, BootID: boot, StateDir: c.StateDir,
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the bundle %s belongs to a pod already: %w", c.opts.Bundle, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	c.u.Push("remove the journal", func(context.Context) error { return c.Journal.Remove() })
	if err := os.Mkdir(c.StateDir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists, so a pod %s in namespace %s runs, or was not cleaned up: %w", c.StateDir, c.opts.ID,
				c.opts.Namespace, errdefs.ErrAlreadyExists)
		}
		return err
	}
	c.u.Push("remove "+c.StateDir, func(context.Context) error { return os.RemoveAll(c.StateDir) })
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
	if w := c.opts.Warm; w != nil {
		c.netns, c.ownNetNS = fmt.Sprintf("/proc/%d/ns/net", w.c.Place.PID()), true
		return nil
	}
	c.netns, c.ownNetNS = filepath.Join(c.StateDir, "netns"), true
	if err := c.Journal.Update(func(p *state.Pod) { p.OwnNetNS = c.netns }); err != nil {
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
	if err := c.Journal.Update(func(p *state.Pod) {
		p.Hooks, p.Annotations = hooks.Journal(h.Poststop), c.opts.Spec.Annotations
	}); err != nil {
		return err
	}
	c.u.Push("poststop hooks", func(ctx context.Context) error { return c.runPoststop(ctx) })
	return hooks.RunStart(ctx, h, c.hookState(specs.StateCreating))
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
	c.NICs = nic.New(c.attached, nic.Options{
		Pod: c.opts.ID, Log: c.log, Timeout: c.opts.Config.Runtime.CreateTimeout, Late: standby,
		Record: c.recordRedirects, Spawn: c.Life.Spawn, Ended: c.ended,
	})
	c.u.Push("detach the network", c.NICs.Detach)
	for _, n := range c.attached.NICs {
		c.vmspec.NICs = append(c.vmspec.NICs, hypervisor.NIC{ID: n.Name, MAC: n.MAC, Tap: n.Files, MTU: n.MTU})
	}
	return nil
}

func (c *creation) bootNetwork(ctx context.Context) error {
	plugger, _ := c.VM.(hypervisor.NICPlugger) // nil: it takes no interface while it runs
	return c.NICs.Boot(ctx, plugger, c.Agent)
}

// recordRedirects writes down what is joined with the VM. In a namespace of ours it goes with the VMM's process.
func (c *creation) recordRedirects(made []network.Redirect) error {
	if c.ownNetNS {
		return nil
	}
	return c.Journal.Update(func(p *state.Pod) {
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
	if c.opts.Warm != nil {
		return c.adopt(ctx)
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
	vm, err := c.Place.Launch(ctx, c.vmspec)
	if err != nil {
		return err
	}
	c.VM = vm
	c.u.Push("stop the VM", vm.Stop)
	c.Disks = disk.New(vm, c.Journal, c.opts.Config.Runtime, c.opts.alone())
	return errors.Join(c.closeFiles(), c.Disks.Adopt(first))
}

// closeFiles closes the files that the VMM has its own descriptors of.
func (c *creation) closeFiles() error {
	var errs []error
	for _, n := range c.attached.NICs {
		errs = append(errs, n.CloseFiles())
	}
	if f := c.vmspec.HostFiles; f != nil { // the server ends with the VMM's
		errs = append(errs, closeOnce(f.Socket))
	}
	if t := c.vmspec.Boot.TPM; t != nil && t.Control != nil { // the TPM must see the VMM's end
		errs = append(errs, closeOnce(t.Control))
	}
	for _, f := range append(c.opened, c.initdata) {
		if f != nil {
			errs = append(errs, closeOnce(f))
		}
	}
	return errors.Join(errs...)
}

// addUpper puts the disk of the only container's writable layer into the VM.
func (c *creation) addUpper() error {
	if c.opts.First == nil {
		return nil
	}
	b, ok, err := disk.AtBoot(c.opts.Config.Runtime, c.opts.alone())
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
