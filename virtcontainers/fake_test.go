// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

var errInjected = errors.New("injected")

// world is a machine in memory that knows everything a pod holds on it, and can fail any operation.
type world struct {
	t   *testing.T
	dir string

	mu     sync.Mutex
	held   map[string]int // guarded by mu
	ops    []string       // guarded by mu
	failAt int            // guarded by mu; the operation, from 1, that fails; 0: none
	fail   string         // the name of the operation that fails
	vms    []*fakeVM      // guarded by mu

	tidied    []string                // guarded by mu; resources held when the layers were tidied
	signals   []string                // guarded by mu; that the agent was asked to send
	shared    []string                // guarded by mu; files that the guest can see, and whether read-only
	server    hypervisor.Process      // of live files
	layers    int                     // how many layers a root file system has
	slow      map[string]chan string  // operations that wait until the channel is closed
	noStreams bool                    // the agent takes no byte streams
	oneOutput bool                    // the agent takes one stream for both outputs
	noStats   bool                    // the guest's policy does not open statistics
	mute      bool                    // the agent never answers
	elsewhere bool                    // VMs run on another machine
	lies      *lie                    // stands before the agent; nil: it is honest
	paused    atomic.Bool             // VMs are
	cloned    bool                    // VMs begin as copies of another one
	entropy   [][]byte                // guarded by mu; that guests were given
	upper     []byte                  // what guests send of a container's files; nil: they refuse
	onLaunch  func(hypervisor.VMSpec) // looks at the VM's description while its files are open
	links     *linkTable              // the network namespace; nil: one with an eth0 that never changes
	ports     int                     // how many interfaces can be plugged in
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, dir: t.TempDir(), held: map[string]int{}, layers: 2, slow: map[string]chan string{}}
}

// op counts an operation and fails it when its turn has come.
func (w *world) op(name string) error {
	w.mu.Lock()
	w.ops = append(w.ops, name)
	n, at, wait := len(w.ops), w.failAt, w.slow[name]
	w.mu.Unlock()
	if wait != nil {
		<-wait
	}
	if n == at || name == w.fail {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.ops)
}

func (w *world) hold(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[what]++
}

func (w *world) free(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held[what]--; w.held[what] <= 0 {
		delete(w.held, what)
	}
}

// left lists what is held, with the files of the bundle and the state directory.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for k := range w.held {
		out = append(out, k)
	}
	for _, d := range []string{"bundle", "run"} {
		names, _ := filepath.Glob(filepath.Join(w.dir, d, "*"))
		out = append(out, names...)
	}
	sort.Strings(out)
	return out
}

func (w *world) vm() *fakeVM {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vms[len(w.vms)-1]
}

// holdUntil keeps an operation from going on before another was done.
func (w *world) holdUntil(held, done string) {
	gate := make(chan string)
	w.slow[held] = gate
	go func() {
		for !w.did(done) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond) // its caller notes the outcome
		close(gate)
	}()
}

func (w *world) did(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.ops, name)
}

// options are those of a pod of one in this world.
func (w *world) options(args ...string) Options {
	w.t.Helper()
	cfg := configs.Default()
	cfg.Hypervisor.Path = w.file("qemu", 0o755)
	cfg.Hypervisor.Kernel, cfg.Hypervisor.Initrd = w.file("vmlinux", 0o644), w.file("initrd.img", 0o644)
	cfg.Hypervisor.GuestDir = w.dir
	cfg.Runtime.StateDir, cfg.Runtime.ScratchDir = filepath.Join(w.dir, "run"), filepath.Join(w.dir, "scratch")
	cfg.Runtime.CreateTimeout = 20 * time.Second
	bundle := filepath.Join(w.dir, "bundle")
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		w.t.Fatal(err)
	}
	s := newSpec(args...)
	first := &ContainerRequest{ID: "c1", Bundle: bundle, Spec: s, Stdin: true, Stdout: true, Stderr: true}
	return Options{
		ID: "c1", Namespace: "default", Bundle: bundle, Spec: s, Config: cfg, First: first,
		Host: boot.Host{
			Driver: (*fakeDriver)(w), Network: (*fakeNetwork)(w), Layers: (*fakeLayers)(w),
			Files:   (*fakeFiles)(w),
			TPM:     (*fakeTPM)(w),
			Names:   w.names,
			Machine: launch.Machine{CPUs: 2, MemoryMiB: 8192},
		},
	}
}

func (w *world) file(name string, mode os.FileMode) string {
	p := filepath.Join(w.dir, name)
	if err := os.WriteFile(p, []byte(name), mode); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func newSpec(args ...string) *specs.Spec {
	if len(args) == 0 {
		args = []string{"sleep"}
	}
	var ns []specs.LinuxNamespace
	for _, k := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
		specs.MountNamespace, specs.NetworkNamespace,
	} {
		ns = append(ns, specs.LinuxNamespace{Type: k})
	}
	return &specs.Spec{
		Version: specs.Version, Hostname: "box", Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: args, Cwd: "/"}, Linux: &specs.Linux{Namespaces: ns},
	}
}

func (w *world) fork() (*fakeProcess, error) {
	if err := w.op("launch"); err != nil {
		return nil, err
	}
	w.hold("process")
	return &fakeProcess{w: w, done: make(chan struct{})}, nil
}

type fakeProcess struct {
	w    *world
	once sync.Once
	done chan struct{}
}

func (p *fakeProcess) PID() int { return os.Getpid() }
func (p *fakeProcess) Exec(context.Context, []string, []string, []*os.File) error {
	return nil
}
func (p *fakeProcess) Done() <-chan struct{} { return p.done }
func (p *fakeProcess) ExitStatus() string    { return "signal: killed" }
func (p *fakeProcess) Stderr() string        { return "" }
func (p *fakeProcess) Kill() error {
	p.once.Do(func() {
		p.w.free("process")
		close(p.done)
	})
	return nil
}

type fakeNetwork world

func (f *fakeNetwork) Make(string) error {
	w := (*world)(f)
	if err := w.op("make netns"); err != nil {
		return err
	}
	w.hold("netns")
	return nil
}

func (f *fakeNetwork) Delete(string) error {
	w := (*world)(f)
	if err := w.op("delete netns"); err != nil {
		w.free("netns") // half done, to be retried
		return err
	}
	w.free("netns")
	return nil
}

func (f *fakeNetwork) Attach(ctx context.Context, _ string, standby bool,
	record func([]network.Redirect) error,
) (nic.Attachment, error) {
	w := (*world)(f)
	if w.links != nil {
		return w.links.attach(ctx, standby, record)
	}
	if err := w.op("attach"); err != nil {
		return nic.Attachment{}, err
	}
	if err := record([]network.Redirect{{Link: "eth0", Tap: "coco0_eth0"}}); err != nil {
		return nic.Attachment{}, err
	}
	w.hold("tap")
	return nic.Attachment{
		NICs:   []network.NIC{{Name: "eth0", Tap: "coco0_eth0", MAC: "02:00:00:00:00:01", MTU: 1500}},
		Guest:  guestNetwork(),
		Detach: func(context.Context) error { w.free("tap"); return nil },
	}, nil
}

func (f *fakeNetwork) Clean(context.Context, string, []network.Redirect) error {
	(*world)(f).free("tap")
	return nil
}

type fakeDriver world

func (f *fakeDriver) Name() string { return "fake" }

func (f *fakeDriver) Begin(_ context.Context, p hypervisor.Place) (hypervisor.Pending, error) {
	w := (*world)(f)
	if w.elsewhere {
		return elsewhere{}, nil
	}
	if p.ID == "" || p.NetNS == "" || p.User == 0 || p.Dir == "" {
		return nil, fmt.Errorf("begun with %+v", p)
	}
	proc, err := w.fork()
	if err != nil {
		return nil, err
	}
	return &fakePending{proc}, nil
}

// elsewhere is a VM on another machine.
type elsewhere struct{ hypervisor.Pending }

func (elsewhere) PID() int                    { return 0 }
func (elsewhere) Abort(context.Context) error { return nil }
func (elsewhere) Done() <-chan struct{}       { return nil }

type fakePending struct{ *fakeProcess }

func (p *fakePending) Abort(context.Context) error { return p.Kill() }

func (p *fakePending) Err() error {
	return &hypervisor.DeadError{VM: "c1", Phase: hypervisor.PhaseVMM, Reason: "its process ended: " + p.ExitStatus()}
}

func (p *fakePending) Launch(_ context.Context, spec hypervisor.VMSpec) (hypervisor.VM, error) {
	w, proc := p.w, p.fakeProcess
	if err := w.op("driver launch"); err != nil {
		return nil, errors.Join(err, proc.Kill())
	}
	if w.onLaunch != nil {
		w.onLaunch(spec)
	}
	w.hold("vm")
	vm := &fakeVM{
		w: w, id: spec.ID, proc: proc, spec: spec, done: make(chan struct{}), blocks: map[string]string{},
		nics: map[string]string{},
	}
	for i, b := range spec.Blocks {
		vm.blocks[b.ID] = fmt.Sprintf("%d:0", i)
	}
	vm.agent = newFakeAgent(vm)
	w.mu.Lock()
	w.vms = append(w.vms, vm)
	w.mu.Unlock()
	return vm, nil
}

type fakeVM struct {
	w     *world
	id    string
	spec  hypervisor.VMSpec
	proc  *fakeProcess
	agent *fakeAgent
	done  chan struct{}
	once  sync.Once

	mu     sync.Mutex
	err    error             // guarded by mu
	blocks map[string]string // guarded by mu; id → address
	nics   map[string]string // guarded by mu; id → MAC of what was plugged in
	n      int               // guarded by mu
	net    guestNet          // guarded by mu
}

func (v *fakeVM) ID() string            { return v.id }
func (v *fakeVM) Done() <-chan struct{} { return v.done }
func (v *fakeVM) Console() []string     { return nil }
func (v *fakeVM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func (v *fakeVM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := v.w.op(fmt.Sprintf("dial %d", port)); err != nil {
		return nil, err
	}
	if v.w.mute {
		<-ctx.Done()
		return nil, &hypervisor.DeadError{VM: v.id, Phase: hypervisor.PhaseKernel, Reason: context.Cause(ctx).Error()}
	}
	return v.agent.accept(port)
}

// die ends the VM by itself.
func (v *fakeVM) die(err error) {
	v.once.Do(func() {
		v.mu.Lock()
		v.err = err
		v.mu.Unlock()
		close(v.done)
		v.agent.close()
		v.w.free("vm")
		_ = v.proc.Kill()
	})
}

// Cloned says what the world has set.
func (v *fakeVM) Cloned() bool { return v.w.cloned }

// Paused says what the world has set.
func (v *fakeVM) Paused(context.Context) (bool, error) { return v.w.paused.Load(), nil }

func (v *fakeVM) Stop(context.Context) error {
	v.die(nil)
	return nil
}

func (v *fakeVM) PlugBlock(_ context.Context, b hypervisor.Block) (hypervisor.BlockAddress, error) {
	if err := v.w.op("plug"); err != nil {
		return hypervisor.BlockAddress{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.blocks[b.ID]; ok {
		return hypervisor.BlockAddress{}, fmt.Errorf("block %s twice", b.ID)
	}
	v.n++
	v.blocks[b.ID] = fmt.Sprintf("%d:0", 100+v.n)
	return hypervisor.BlockAddress{Driver: "scsi", Source: v.blocks[b.ID]}, nil
}

func (v *fakeVM) UnplugBlock(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.blocks[id]; !ok {
		return fmt.Errorf("block %s is not there", id)
	}
	delete(v.blocks, id)
	return nil
}

func (v *fakeVM) BlockAddress(id string) (hypervisor.BlockAddress, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a, ok := v.blocks[id]
	return hypervisor.BlockAddress{Driver: "scsi", Source: a}, ok
}

func (v *fakeVM) hasBlockAt(addr string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, a := range v.blocks {
		if a == addr {
			return true
		}
	}
	return false
}

func (v *fakeVM) plugged() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	for id := range v.blocks {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// socketPair is a connection with both its ends and real half-closing.
func socketPair() (host, guest *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conn := func(fd int) (*net.UnixConn, error) {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close() // duplicated below
		c, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		return c.(*net.UnixConn), nil
	}
	if host, err = conn(fds[0]); err != nil {
		return nil, nil, err
	}
	guest, err = conn(fds[1])
	return host, guest, err
}
