// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/vmm"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/kubepod"
	"github.com/coco-shim/coco/network"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/bootfiles"
	"github.com/coco-shim/coco/virtcontainers/layers"
	"github.com/coco-shim/coco/virtcontainers/nic"
)

// For random configurations and pods the shim publishes what `coco measure --pod` foretells and `coco measure --config`
// gives for the pod's size, and refuses what the command refuses. The shim's part is virtcontainers.CreatePod up to the
// launch of the VM, on a host that has no VMM.
func TestShimAndCommandAgreeOnRandomPods(t *testing.T) {
	const cases = 200
	digests, refused, rehearsed := map[string]bool{}, 0, 0
	for i := range cases {
		ok := t.Run(fmt.Sprint(i), func(t *testing.T) {
			g := &generator{t: t, r: rand.New(rand.NewPCG(10, uint64(i))), dir: t.TempDir()}
			c := g.next()
			text, _, failure := measure(t, "--config", c.config, "--pod", c.manifest, "--json")
			vm, err := c.create(t)
			if (failure == nil) != (err == nil) {
				t.Fatalf("the command says %v, the shim %v", failure, err)
			}
			if err != nil {
				refused++
				return
			}
			var want podResult
			if err := json.Unmarshal([]byte(text), &want); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if vm.published.Rehearsal != (c.plain != "") {
				t.Errorf("the shim publishes %+v", vm.published)
			}
			if want.Rehearsal = vm.published.Rehearsal; want.Expected != vm.published {
				t.Errorf("the shim publishes\n%+v, the command foretells\n%+v", vm.published, want.Expected)
			}
			c.compare(t, vm, want)
			digests[want.Digest] = true
			if want.Rehearsal {
				rehearsed++
			}
		})
		if !ok {
			break
		}
	}
	t.Logf("%d pods: %d refused, %d rehearsed, %d digests", cases, refused, rehearsed, len(digests))
	if refused == 0 || refused > cases/4 || rehearsed < cases/5 || len(digests) < cases/2 {
		t.Error("the pods are not of all kinds")
	}
}

// agreeCase is a configuration and a pod.
type agreeCase struct {
	config   string // path
	plain    string // path of the plain configuration that rehearses config; "": the shim runs config
	manifest string // path
	digested bool   // a change of the pod's changes the digest: --config alone cannot know it
	dir      string
}

// launched is what the shim was about to launch.
type launched struct {
	published launch.Expected
	spec      hypervisor.VMSpec
}

// compare holds the other forms of the command against the launch.
func (c agreeCase) compare(t *testing.T, vm launched, want podResult) {
	t.Helper()
	vcpus, memory := fmt.Sprint(want.VCPUs), fmt.Sprintf("%dM", want.MemoryMiB)
	out, _, err := measure(t, "--config", c.config, "--vcpus", vcpus, "--memory", memory)
	if err != nil {
		t.Fatal(err)
	}
	if same := strings.TrimSpace(out) == want.Digest; same == c.digested {
		t.Errorf("measure --config = %q, the pod's digest is %s, which the pod itself changed: %t",
			out, want.Digest, c.digested)
	}
	if c.plain != "" || vm.spec.TEE != hypervisor.TEESNP || len(vm.spec.SNP.IDBlock) == 0 {
		return
	}
	out, _, err = measure(t, "--config", c.config, "--pod", c.manifest, "--id-block")
	base64 := base64.StdEncoding.EncodeToString
	lines := []string{want.Digest, "id-block=" + base64(vm.spec.SNP.IDBlock), "id-auth=" + base64(vm.spec.SNP.IDAuth)}
	if d := cmp.Diff(lines, strings.Fields(out)); err != nil || d != "" {
		t.Errorf("measure --id-block: %v (-the shim's +the command's):\n%s", err, d)
	}
}

var errNoVMM = errors.New("there is no VMM here")

// namespaces are those of a sandbox.
var namespaces = []specs.LinuxNamespace{
	{Type: specs.PIDNamespace},
	{Type: specs.IPCNamespace},
	{Type: specs.UTSNamespace},
	{Type: specs.MountNamespace},
	{Type: specs.NetworkNamespace},
}

// create makes the pod as the shim does, until its VM would start.
func (c agreeCase) create(t *testing.T) (vm launched, err error) {
	t.Helper()
	text, err := os.ReadFile(c.manifest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := kubepod.Parse(text)
	if err != nil {
		return vm, err
	}
	annotations := m.Pods[0].Annotations
	path := c.config
	if c.plain != "" {
		path = c.plain
	}
	cfg, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg, overrides, _, err := cfg.ForPod(annotations)
	if err != nil {
		return vm, err
	}
	cfg.Runtime.StateDir = filepath.Join(c.dir, "run")
	o := virtcontainers.Options{
		ID: "pod", Namespace: "k8s.io", Bundle: c.dir, Config: cfg, Initdata: overrides[contract.KataInitdata],
		Spec: &specs.Spec{
			Version: specs.Version, Annotations: annotations, Linux: &specs.Linux{Namespaces: namespaces},
		},
		Host: boot.Host{
			Driver: noVMM{t, &vm, bootfiles.Precheck(cfg.Hypervisor.Type)}, Network: noNetwork{},
			Layers:  noLayers{},
			Machine: launch.Machine{CPUs: 2, MemoryMiB: 1 << 30},
		},
	}
	if c.plain != "" {
		r, err := configs.Load(cfg.Runtime.Rehearse)
		if err != nil {
			t.Fatal(err)
		}
		if r, err = r.WithAnnotations(overrides); err != nil {
			return vm, err
		}
		o.Rehearse = &r
	}
	p, err := virtcontainers.CreatePod(t.Context(), o)
	if p != nil {
		t.Fatal("a pod runs without a VMM")
	}
	if errors.Is(err, errNoVMM) {
		return vm, nil
	}
	return vm, err
}

// noVMM is a driver whose VMs never start.
type noVMM struct {
	t        *testing.T
	vm       *launched
	precheck func(hypervisor.VMSpec) error
}

func (noVMM) Name() string { return "none" }

func (d noVMM) Begin(ctx context.Context, p hypervisor.Place) (hypervisor.Pending, error) {
	fork := func(context.Context, hypervisor.Place) (hypervisor.Process, error) {
		return &idleProcess{done: make(chan struct{})}, nil
	}
	return vmm.NewDriver(d, fork).Begin(ctx, p)
}

func (d noVMM) Launch(
	_ context.Context, spec hypervisor.VMSpec, _ hypervisor.Process, dir string,
) (hypervisor.VM, error) {
	if err := d.precheck(spec); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), boot.LaunchFile))
	if err == nil {
		err = json.Unmarshal(text, &d.vm.published)
	}
	if err != nil {
		d.t.Errorf("what the shim published: %v", err)
	}
	d.vm.spec = spec
	return nil, errNoVMM
}

// idleProcess is this process by its PID and ends when it is told to.
type idleProcess struct {
	once sync.Once
	done chan struct{}
}

func (*idleProcess) PID() int                                                   { return os.Getpid() }
func (*idleProcess) Exec(context.Context, []string, []string, []*os.File) error { return errNoVMM }
func (p *idleProcess) Done() <-chan struct{}                                    { return p.done }
func (*idleProcess) ExitStatus() string                                         { return "signal: killed" }
func (*idleProcess) Stderr() string                                             { return "" }
func (p *idleProcess) Kill() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// noNetwork has no interfaces and no namespaces.
type noNetwork struct{}

func (noNetwork) Make(string) error   { return nil }
func (noNetwork) Delete(string) error { return nil }

func (noNetwork) Attach(
	context.Context, string, bool, func([]network.Redirect) error,
) (nic.Attachment, error) {
	return nic.Attachment{Detach: func(context.Context) error { return nil }}, nil
}

func (noNetwork) Clean(context.Context, string, []network.Redirect) error { return nil }

// noLayers has none: sandboxes have no root file system.
type noLayers struct{}

func (noLayers) Open(context.Context, layers.Request) ([]*layer.Layer, error) {
	return nil, errors.New("a sandbox has no layers")
}
