// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package measure compares the shim with coco measure. Pods run through containerd's CRI on the plain platform and
// rehearse an SNP class, and the digest that the shim publishes must be the one that the command computed from the
// manifest.
package measure

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/virtcontainers/boot"
)

func TestMain(m *testing.M) {
	harness.AdoptOrphans()
	os.Exit(m.Run())
}

// initdataText has a file that nobody in the guest reads: a policy would have to allow the pods.
const initdataText = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"note.txt\" = \"measured\"\n"

func initdataAnnotation(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(initdataText)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// shape is a pod: a manifest, and what kubelet 1.37 tells CRI of it (computed by Kubernetes' own code).
type shape struct {
	name                  string
	manifest              string // of the pod's specification, below runtimeClassName
	kind                  string // "": Pod
	memory, quota, shares int64
	annotations           map[string]string
	vcpus                 int
	memoryMiB             uint64
}

const c = "containers: [{name: c, image: i, resources: "

var shapes = []shape{
	{name: "nothing asked", manifest: c + "{}}]", shares: 2, vcpus: 1, memoryMiB: 384},
	{
		name: "a limit", manifest: c + "{limits: {cpu: 1, memory: 256Mi}}}]", memory: 256 << 20, quota: 100000, shares: 1024,
		vcpus: 1, memoryMiB: 384,
	},
	{name: "half a CPU", manifest: c + "{limits: {cpu: 500m}}}]", quota: 50000, shares: 512, vcpus: 1, memoryMiB: 384},
	{
		name: "a CPU and a bit", manifest: c + "{limits: {cpu: 1001m}}}]", quota: 100100, shares: 1025, vcpus: 2,
		memoryMiB: 384,
	},
	{
		name: "five CPUs are six", manifest: c + "{limits: {cpu: 5}}}]", quota: 500000, shares: 5120, vcpus: 6,
		memoryMiB: 384,
	},
	{
		name: "more than the maximum", manifest: c + "{limits: {cpu: 64}}}]", quota: 6400000, shares: 65536, vcpus: 8,
		memoryMiB: 384,
	},
	{
		name: "a request only", manifest: c + "{requests: {cpu: 2500m, memory: 1Gi}}}]", shares: 2560, vcpus: 3,
		memoryMiB: 384,
	},
	{name: "a small request", manifest: c + "{requests: {cpu: 1m}}}]", shares: 2, vcpus: 1, memoryMiB: 384},
	{
		name: "odd memory", manifest: c + "{limits: {memory: 303000001}}}]", memory: 303000001, shares: 2, vcpus: 1,
		memoryMiB: 512,
	},
	{
		name: "two containers", manifest: "containers: [{name: a, resources: {limits: {cpu: 1500m, memory: 128Mi}}}, " +
			"{name: b, resources: {limits: {cpu: 700m, memory: 100Mi}}}]",
		memory: 228 << 20, quota: 220000, shares: 2252, vcpus: 3, memoryMiB: 384,
	},
	{name: "one of two limited", manifest: "containers: [{name: a, resources: {limits: {cpu: 2, memory: 512Mi}}}, " +
		"{name: b}]", memory: 512 << 20, quota: 200000, shares: 2048, vcpus: 2, memoryMiB: 640},
	{
		name: "an init container that needs more", manifest: "initContainers: [{name: i, resources: {limits: {cpu: 4, " +
			"memory: 400Mi}}}]\n" + c + "{limits: {cpu: 1, memory: 100Mi}}}]",
		memory: 400 << 20, quota: 400000, shares: 4096, vcpus: 4, memoryMiB: 512,
	},
	{
		name: "a sidecar", manifest: "initContainers: [{name: s, restartPolicy: Always, resources: {limits: {cpu: 1, " +
			"memory: 200Mi}}}, {name: i, resources: {limits: {cpu: 2, memory: 100Mi}}}]\n" + c +
			"{limits: {cpu: 1, memory: 150Mi}}}]",
		memory: 350 << 20, quota: 300000, shares: 3072, vcpus: 3, memoryMiB: 512,
	},
	{name: "resources of the pod", manifest: "resources: {limits: {cpu: 3, memory: 600Mi}}\n" + c +
		"{limits: {cpu: 1, memory: 100Mi}}}]", memory: 600 << 20, quota: 300000, shares: 1024, vcpus: 3, memoryMiB: 768},
	{name: "an overhead is not counted", manifest: "overhead: {cpu: 250m, memory: 160Mi}\n" + c +
		"{limits: {cpu: 1, memory: 256Mi}}}]", memory: 256 << 20, quota: 100000, shares: 1024, vcpus: 1, memoryMiB: 384},
	{
		name: "vCPUs by annotation", manifest: c + "{}}]", shares: 2,
		annotations: map[string]string{contract.ConfigPrefix + "hypervisor.default_vcpus": "4"}, vcpus: 4, memoryMiB: 384,
	},
	{name: "memory by annotation", manifest: c + "{}}]", shares: 2, annotations: map[string]string{contract.ConfigPrefix +
		"hypervisor.default_memory_mib": "700"}, vcpus: 1, memoryMiB: 896},
	{
		name: "initdata", manifest: c + "{}}]", shares: 2, annotations: map[string]string{contract.KataInitdata: ""},
		vcpus: 1, memoryMiB: 384,
	},
	{
		name: "a deployment", kind: "Deployment", manifest: c + "{limits: {cpu: 2, memory: 1Gi}}}]", memory: 1 << 30,
		quota: 200000, shares: 2048, vcpus: 2, memoryMiB: 1152,
	},
	{
		name: "a cron job", kind: "CronJob", manifest: c + "{limits: {cpu: 7}, requests: {cpu: 1}}}]", quota: 700000,
		shares: 1024, vcpus: 8, memoryMiB: 384,
	},
}

// manifestOf writes a shape as a manifest, as JSON with the specification in YAML's flow style.
func (s shape) manifestOf(t *testing.T) []byte {
	t.Helper()
	annotations, err := json.Marshal(s.annotations)
	if err != nil {
		t.Fatal(err)
	}
	indent := func(text, by string) string {
		return by + string(bytes.ReplaceAll([]byte(text), []byte("\n"), []byte("\n"+by)))
	}
	pod := fmt.Sprintf("metadata: {name: p, annotations: %s}\nspec:\n  runtimeClassName: coco-snp\n%s\n", annotations,
		indent(s.manifest, "  "))
	switch s.kind {
	case "Deployment":
		return []byte("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: shop}\nspec:\n  replicas: 3\n " +
			" template:\n" + indent(pod, "    "))
	case "CronJob":
		return []byte("apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: j}\nspec:\n  schedule: '@daily'\n  " +
			"jobTemplate:\n    spec:\n      template:\n" + indent(pod, "        "))
	}
	return []byte("apiVersion: v1\nkind: Pod\n" + pod)
}

// noVMM is the file whose presence keeps VMs from starting, in a directory that VMMs see.
const noVMM = "switch/no-vmm"

// configs writes the class that is rehearsed and the one that the pods run by.
func configs(t *testing.T, dir string) (snp, plain string) {
	t.Helper()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, filepath.Dir(noVMM)), 0o755); err != nil { // VMMs have users of their own
		t.Fatal(err)
	}
	fw := write("fw.fd", ovmftest.Build(ovmftest.Layout{
		Size: 4 << 20, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00,
		SEV: ovmftest.Sections(),
	}))
	snp = write("snp.toml", fmt.Appendf(nil, "[hypervisor]\nplatform = \"snp\"\ncpu_model = \"EPYC-v4\"\nfirmware = "+
		"%q\nmax_vcpus = 8\ndefault_memory_mib = 256\n", fw))
	vmm := write("vmm", fmt.Appendf(nil, "#!/bin/sh\n[ -e %q ] && exit 1\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n",
		filepath.Join(dir, noVMM)))
	if err := os.Chmod(vmm, 0o755); err != nil {
		t.Fatal(err)
	}
	plain = write("plain.toml", fmt.Appendf(nil, "[hypervisor]\npath = %q\nextra_paths = [%q]\ndefault_memory_mib = "+
		"256\nboot_timeout = \"170s\"\n[runtime]\ntemplate = \"off\"\n"+
		"create_timeout = \"170s\"\nstate_dir = %q\nlayer_cache = %q\nrehearse "+
		"= %q\n",
		vmm, filepath.Join(dir, filepath.Dir(noVMM)), filepath.Join(dir, "run"), filepath.Join(dir, "layers"), snp))
	return snp, plain
}

func foretold(ctx context.Context, t *testing.T, snp string, manifest []byte) launch.Expected {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.Prefix(), "bin", "coco"), "measure", "--config", snp, "--pod",
		"-", "--runtime-class", "coco-snp", "--json")
	cmd.Stdin = bytes.NewReader(manifest)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("coco measure: %v: %s\n%s", err, stderr.String(), manifest)
	}
	var l launch.Expected
	if err := json.Unmarshal(out, &l); err != nil {
		t.Fatalf("coco measure: %v: %s", err, out)
	}
	return l
}

// published is what the shim says of a running pod of CRI.
func published(t *testing.T, stateDir, id string) launch.Expected {
	t.Helper()
	sum := sha256.Sum256([]byte("k8s.io\x00" + id))
	text, err := os.ReadFile(filepath.Join(stateDir, hex.EncodeToString(sum[:12]), boot.LaunchFile))
	if err != nil {
		t.Fatal(err)
	}
	var l launch.Expected
	if err := json.Unmarshal(text, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// logged are the digest, HOSTDATA and size that the shim logged last.
var logged = regexp.MustCompile(
	`launch digest.*digest=([0-9a-f]{96}) vcpus=(\d+) memory_mib=(\d+) .*host_data=([0-9a-f]{64})`)

func lastLogged(t *testing.T, log string) []string {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	all := logged.FindAllStringSubmatch(string(text), -1)
	if len(all) == 0 {
		t.Fatalf("the log has no launch digest:\n%s", text[max(0, len(text)-4000):])
	}
	return all[len(all)-1][1:]
}

func TestTheShimPublishesWhatTheCommandForetells(t *testing.T) {
	if testing.Short() {
		t.Skip("boots VMs")
	}
	if os.Geteuid() != 0 {
		absent(t, "this test starts containerd and VMs: run as root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "coco-measure-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	snp, plain := configs(t, dir)
	t.Setenv("COCO_CONF_FILE", plain)
	cri, err := harness.StartCRI(context.WithoutCancel(t.Context()), "2.4", dir, "coco")
	if errors.Is(err, harness.ErrAbsent) {
		absent(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cri.Stop(); err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	// The digest is there before the VM starts. Some pods are let run; of the others the VMM ends at once.
	running := map[string]bool{"nothing asked": true, "a sidecar": true, "initdata": true, "a deployment": true}
	for i, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			if _, ok := s.annotations[contract.KataInitdata]; ok {
				s.annotations = map[string]string{contract.KataInitdata: initdataAnnotation(t)}
			}
			want := foretold(t.Context(), t, snp, s.manifestOf(t))
			if want.VCPUs != s.vcpus || want.MemoryMiB != s.memoryMiB || len(want.Digest) != 96 {
				t.Errorf("the command foretells %d vCPUs and %d MiB, want %d and %d", want.VCPUs, want.MemoryMiB,
					s.vcpus, s.memoryMiB)
			}
			if sum := sha256.Sum256([]byte(initdataText)); s.name == "initdata" && want.HostData != hex.EncodeToString(sum[:]) {
				t.Errorf("HOSTDATA = %s, want %x", want.HostData, sum)
			}
			block := filepath.Join(dir, noVMM)
			if running[s.name] {
				_ = os.Remove(block) // may not be there
			} else if err := os.WriteFile(block, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			id, err := runPod(t, cri, fmt.Sprint("p", i), s)
			if running[s.name] != (err == nil) {
				t.Fatalf("RunPodSandbox = %v", err)
			}
			if got := lastLogged(t, cri.Log()); !slices.Equal(got, []string{
				want.Digest, fmt.Sprint(want.VCPUs),
				fmt.Sprint(want.MemoryMiB), want.HostData,
			}) {
				t.Errorf("the shim logs\n%q, the command foretells\n%+v", got, want)
			}
			if err != nil {
				return
			}
			got := published(t, filepath.Join(dir, "run"), id)
			if !got.Rehearsal {
				t.Error("the digest of a plain pod does not say that it is a rehearsal")
			}
			if got.Rehearsal = false; got != want {
				t.Errorf("the shim publishes\n%+v, the command foretells\n%+v", got, want)
			}
			stopPod(t, cri, id)
		})
	}
	t.Logf("%d pods in %s", len(shapes), time.Since(start).Round(time.Second))
}

// patience is generous: it is there to end a test that hangs.
const patience = 3 * time.Minute

func runPod(t *testing.T, cri *harness.CRI, name string, s shape) (id string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pod, err := cri.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{
		RuntimeHandler: "coco",
		Config: &runtime.PodSandboxConfig{
			Metadata:    &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
			Annotations: s.annotations,
			Linux: &runtime.LinuxPodSandboxConfig{Resources: &runtime.LinuxContainerResources{
				MemoryLimitInBytes: s.memory, CpuQuota: s.quota, CpuPeriod: 100000, CpuShares: s.shares,
			}},
		},
	})
	return pod.GetPodSandboxId(), err
}

func stopPod(t *testing.T, cri *harness.CRI, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := cri.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Error(err)
	}
	if _, err := cri.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Error(err)
	}
}

// absent skips, or fails where everything is required, as in CI.
func absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COCO_REQUIRE") == "all" {
		t.Fatal(why)
	}
	t.Skip(why)
}
