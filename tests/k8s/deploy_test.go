// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/coco-shim/coco/tests/harness"
	"github.com/coco-shim/coco/tests/k8s/kube"
)

// handlers reads the names of the runtimes in a drop-in.
func handlers(t *testing.T, file string) []string {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^\[plugins\..*\.runtimes\.([a-z-]+)\]$`).FindAllStringSubmatch(read(t, file),
		-1) {
		names = append(names, m[1])
	}
	if len(names) == 0 {
		t.Fatalf("%s names no runtime", file)
	}
	return names
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestContainerdTakesTheDropIns installs the files as they say themselves into the default configuration of each
// containerd, and has that containerd print what it understood.
func TestContainerdTakesTheDropIns(t *testing.T) {
	for _, tc := range []struct {
		version string
		v2      bool
	}{{"1.6", true}, {"1.7", true}, {"2.1", false}, {"2.4", false}} {
		t.Run(tc.version, func(t *testing.T) {
			bin, err := harness.Binaries(tc.version)
			if err != nil {
				absent(t, err.Error())
			}
			containerd := filepath.Join(bin, "containerd")
			base, err := exec.CommandContext(t.Context(), containerd, "config", "default").Output()
			if err != nil {
				t.Fatal(err)
			}
			dropin, config := kube.DropIn(tc.v2), string(base)
			if tc.v2 {
				config += read(t, dropin)
			} else {
				config = regexp.MustCompile(`(?m)^imports = .*$`).ReplaceAllString(config, fmt.Sprintf("imports = [%q]", dropin))
			}
			file := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), containerd, "-c", file, "config", "dump").CombinedOutput()
			if err != nil {
				t.Fatalf("config dump: %v: %s", err, out)
			}
			for _, h := range append(handlers(t, dropin), "runc") {
				section := regexp.MustCompile(`(?m)^ *\[plugins\..*\.runtimes\.` + h +
					`\]\n((?: +[a-z_]+ = .*\n)*)`).FindStringSubmatch(string(out))
				want := harness.Runtime
				if h == "runc" {
					want = harness.RuncRuntime
				}
				if section == nil ||
					!regexp.MustCompile(`runtime_type = ['"]`+regexp.QuoteMeta(want)+`['"]`).MatchString(section[1]) {
					t.Errorf("runtime %s is not %s in what containerd understood: %q", h, want, section)
				}
			}
		})
	}
}

// roots are configurations of a node that has something to lose, by their version.
var roots = map[int]string{
	2: `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example.org/pause:9"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
    runtime_type = "io.containerd.other.v2"
`,
	3: `version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "example.org/pause:9"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.other]
  runtime_type = "io.containerd.other.v2"
`,
}

// TestADropInKeepsWhatTheNodeHas installs the file that docs/kubernetes.md names for each version of a node's
// configuration, in each way that it names: runtimes and sandbox image of the node stay.
func TestADropInKeepsWhatTheNodeHas(t *testing.T) {
	for _, tc := range []struct {
		containerd string
		version    int
		imported   bool
	}{
		{"1.6", 2, false},
		{"1.7", 2, false},
		{"2.1", 2, false},
		{"2.1", 2, true},
		{"2.1", 3, true},
		{"2.4", 2, false},
		{"2.4", 2, true},
		{"2.4", 3, true},
	} {
		t.Run(fmt.Sprintf("%s, version %d, imported %v", tc.containerd, tc.version, tc.imported), func(t *testing.T) {
			bin, err := harness.Binaries(tc.containerd)
			if err != nil {
				absent(t, err.Error())
			}
			dropin := kube.DropIn(tc.version == 2)
			config := roots[tc.version] + read(t, dropin)
			if tc.imported {
				config = fmt.Sprintf("imports = [%q]\n", dropin) + roots[tc.version]
			}
			file := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "containerd"), "-c", file, "config", "dump").Output()
			if err != nil {
				t.Fatalf("config dump: %v", err)
			}
			for _, want := range append(handlers(t, dropin), "other") {
				if !strings.Contains(string(out), ".runtimes."+want+"]") {
					t.Errorf("the runtime %s is lost", want)
				}
			}
			if !strings.Contains(string(out), "example.org/pause:9") {
				t.Error("the sandbox image is lost")
			}
		})
	}
}

// TestDeployFilesAgree holds the files of deploy/ against each other and against configs/.
func TestDeployFilesAgree(t *testing.T) {
	classes := read(t, kube.RuntimeClasses())
	for _, v2 := range []bool{true, false} {
		dropin := kube.DropIn(v2)
		for _, h := range handlers(t, dropin) {
			if !strings.Contains(classes, "metadata: {name: "+h+"}\nhandler: "+h+"\n") {
				t.Errorf("%s has the handler %s, runtimeclass.yaml has no RuntimeClass of it", dropin, h)
			}
		}
		for _, m := range regexp.MustCompile(`ConfigPath = "/usr/local/share/coco/configs/(.*)"`).FindAllStringSubmatch(
			read(t, dropin), -1) {
			if _, err := os.Stat(filepath.Join(harness.Root(), "configs", m[1])); err != nil {
				t.Errorf("%s: %v", dropin, err)
			}
		}
	}
	example := read(t, filepath.Join(filepath.Dir(kube.RuntimeClasses()), "example-pod.yaml"))
	if !strings.Contains(example, "runtimeClassName: coco\n") ||
		strings.Count(example, "image: ") != strings.Count(example, "image: "+kube.ExampleImage+"\n") {
		t.Errorf("the example pod does not ask for coco, or has another image than %s", kube.ExampleImage)
	}
}

// declaredOverhead is the memory of the RuntimeClasses in MiB.
func declaredOverhead(t *testing.T) int {
	t.Helper()
	m := regexp.MustCompile(`podFixed: \{memory: (\d+)Mi`).FindAllStringSubmatch(read(t, kube.RuntimeClasses()), -1)
	if len(m) == 0 {
		t.Fatal("runtimeclass.yaml declares no overhead")
	}
	for _, f := range m {
		if f[1] != m[0][1] {
			t.Errorf("runtimeclass.yaml declares different overheads: %sMi and %sMi", f[1], m[0][1])
		}
	}
	n, err := strconv.Atoi(m[0][1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestOverheadIsWhatTheRuntimeClassDeclares fills a pod's containers to their limits and measures what the pod costs
// on the host: shim and VMM, guest memory included.
func TestOverheadIsWhatTheRuntimeClassDeclares(t *testing.T) {
	n := node(t, primary)
	noLeaks(t, n)
	const limits = 2 * 96 // MiB
	static(t, n, "full", `
  containers:
  - &c
    name: a
    image: IMAGE
    command: [sh, -c, "dd if=/dev/zero of=/fill bs=1M count=80 2>/dev/null; echo full; exec sleep 1000"]
    resources: {limits: {memory: 96Mi, cpu: 500m}}
  - {<<: *c, name: b}
`)
	await(t, n, "full", "runs", running)
	logged(t, n, "full", "a", "full")
	logged(t, n, "full", "b", "full")
	shim, vmm := memory(t, n, "full")
	declared := declaredOverhead(t)
	t.Logf("limits %d MiB; on the host: shim %d MiB, VMM %d MiB: overhead %d MiB, declared %d MiB", limits, shim, vmm,
		shim+vmm-limits, declared)
	if shim+vmm > limits+declared {
		t.Errorf("shim %d MiB and VMM %d MiB are more than limits of %d MiB and the declared overhead of %d MiB", shim, vmm,
			limits, declared)
	}
}

// memory is what shim and VMM of a pod hold on the host, in MiB, rounded up.
func memory(t *testing.T, n *kube.Node, pod string) (shim, vmm int) {
	t.Helper()
	id := sandbox(t, n, pod)
	s, v, err := harness.Pids(id)
	if err != nil {
		t.Fatal(err)
	}
	rss := func(pid int) int {
		m := regexp.MustCompile(`(?m)^Rss:\s+(\d+) kB`).FindStringSubmatch(read(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid)))
		if m == nil {
			t.Fatalf("process %d has no Rss", pid)
		}
		kb, _ := strconv.Atoi(m[1]) // digits
		return (kb + 1023) / 1024
	}
	return rss(s), rss(v)
}

// sandbox is the id of a static pod's sandbox.
func sandbox(t *testing.T, n *kube.Node, pod string) string {
	t.Helper()
	id, err := n.Sandbox(t.Context(), pod+"-localhost")
	if err != nil {
		t.Fatal(err)
	}
	return id
}
