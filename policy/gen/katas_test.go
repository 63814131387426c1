// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// holes are the hostile changes of a request that the rules of Kata's genpolicy allow, by their names in the stored
// requests (kata-policy/kata-allows), as changes of what our shim sends. false: the request has nothing to change.
var holes = map[string]func(r *agent.CreateContainerRequest) bool{
	"root path suffix": func(r *agent.CreateContainerRequest) bool {
		r.OCI.Root.Path += "/../../evil"
		return true
	},
	"root path of another container": func(r *agent.CreateContainerRequest) bool {
		r.OCI.Root.Path = contract.GuestRoot + "/evil/" + contract.RootfsName
		return true
	},
	"apparmor unconfined": func(r *agent.CreateContainerRequest) bool {
		r.OCI.Process.ApparmorProfile = "unconfined"
		return true
	},
	"env dropped completely": func(r *agent.CreateContainerRequest) bool {
		r.OCI.Process.Env = nil
		return true
	},
	"mounts dropped completely": func(r *agent.CreateContainerRequest) bool {
		r.OCI.Mounts = nil
		return true
	},
	"netns path changed": func(r *agent.CreateContainerRequest) bool {
		evil := &agent.LinuxNamespace{Type: "network", Path: "/run/netns/evil"}
		r.OCI.Linux.Namespaces = append(r.OCI.Linux.Namespaces, evil)
		return true
	},
	"mount source suffix ../": func(r *agent.CreateContainerRequest) bool {
		for _, m := range r.OCI.Mounts {
			m.Source += "/../evil"
		}
		return len(r.OCI.Mounts) > 0
	},
	"storage 0 " + contract.DriverPull + " source evil": func(r *agent.CreateContainerRequest) bool {
		r.Storages[0] = &agent.Storage{
			Driver: contract.DriverPull, Source: "evil.example/image", Fstype: "overlay", MountPoint: r.OCI.Root.Path,
		}
		return true
	},
	"storage 0 " + contract.DriverPull + " driver_options evil": func(r *agent.CreateContainerRequest) bool {
		r.Storages[0].DriverOptions = append(r.Storages[0].DriverOptions, "evil=1")
		return true
	},
	"storage 0 " + contract.DriverPull + " removed": func(r *agent.CreateContainerRequest) bool {
		r.Storages = r.Storages[1:]
		return true
	},
}

// harmless are the changes that our policies allow too, with the reason.
var harmless = map[string]string{
	"image name annotation changed": "a label that releases of containerd write in different forms: the image is its " +
		"layers by root hash, and nothing in the guest reads the label",
}

// hole is the name in holes of a stored request.
func hole(description string) string {
	if strings.HasPrefix(description, "mount ") && strings.HasSuffix(description, "source suffix ../") {
		return "mount source suffix ../"
	}
	return description
}

// TestHolesOfKatasRulesAreClosed: the policy of each pod allows what the shim sends and denies each of these changes,
// and a second instance under a new id. The pods are those of this package's tests and, with COCO_KATA_SRC, a checkout
// of kata-containers, those that genpolicy is tested with.
func TestHolesOfKatasRulesAreClosed(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	if source := os.Getenv("COCO_KATA_SRC"); source != "" {
		dir := filepath.Join(source, "src/tools/genpolicy/tests/policy/testdata")
		for _, pattern := range []string{"*/pod.yaml", "*/*/pod.yaml", "*/*/*/pod.yaml"} {
			more, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range more {
				if set := filepath.Base(filepath.Dir(f)); set != "config_map" && set != "emptydir" { // this test has other volumes
					files = append(files, f)
				}
			}
		}
	}
	for _, file := range files {
		t.Run(strings.ReplaceAll(filepath.Base(filepath.Dir(file))+"/"+filepath.Base(file), "/", "-"), func(t *testing.T) {
			attack(t, file)
		})
	}
}

// attack makes the first container of a file's pod after each change of its request was denied.
func attack(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newShim(t, string(text))
	sandbox := &specs.Spec{
		Hostname: cmp.Or(s.hostname(), facts[policy.FieldHostname]), Linux: &specs.Linux{Sysctl: s.sysctls()},
	}
	s.must("CreateSandbox", request.Sandbox(request.SandboxInput{
		ID: predict.SandboxID, Spec: sandbox, SharedShm: true, ShmBytes: 1 << 20,
	}))
	c := &slices.Concat(s.pod.InitContainers, s.pod.Containers)[0]
	id := fmt.Sprintf("%064x", 1)
	req := s.create(c, id)
	for name, change := range holes {
		other, ok := proto.Clone(req).(*agent.CreateContainerRequest)
		if !ok {
			t.Fatal("a clone of another type")
		}
		if !change(other) {
			t.Errorf("%s: the request has nothing to change", name)
			continue
		}
		if err := s.send("CreateContainer", other); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
	s.must("CreateContainer", req)
	s.must("StartContainer", &agent.StartContainerRequest{ContainerId: id})
	if err := s.send("CreateContainer", s.create(c, fmt.Sprintf("%064x", 2))); err == nil {
		t.Error("a second instance under a new id is allowed")
	}
}

// TestEveryHoleIsTried compares the changes with the stored requests that Kata's rules wrongly allow.
func TestEveryHoleIsTried(t *testing.T) {
	dir := filepath.Join(cmp.Or(os.Getenv("COCO_KATA_POLICY"), "/work/shared/vectors/kata-policy"), "kata-allows")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no stored requests (COCO_KATA_POLICY): %v", err)
	}
	sets, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, set := range sets {
		text, err := os.ReadFile(set)
		if err != nil {
			t.Fatal(err)
		}
		var list []struct{ Description string }
		if err := json.Unmarshal(text, &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			n++
			if holes[hole(c.Description)] == nil && harmless[c.Description] == "" && c.Description != "second instance, new id" {
				t.Errorf("%s: %q is not tried", filepath.Base(set), c.Description)
			}
		}
	}
	if n != 68 {
		t.Errorf("%d stored requests, not 68", n)
	}
}
