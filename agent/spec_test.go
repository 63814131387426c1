// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/agent/sysctl"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "abc.DEF_0-9": true, strings.Repeat("a", ident.MaxID): true, strings.Repeat("a", ident.MaxID+1): false,
		"": false, ".": false, "..": false, "a/b": false, "-a": false, "a\n": false, "a b": false, "shared": false,
		"sandbox": false,
	} {
		if err := checkContainerID(id); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("checkContainerID(%q) = %v", id, err)
		}
	}
}

func TestAdapt(t *testing.T) {
	s := &specs.Spec{
		Process: &specs.Process{ApparmorProfile: "p", SelinuxLabel: "l"}, Root: &specs.Root{Path: "/x"}, Hostname: "pod",
		Linux: &specs.Linux{
			CgroupsPath: "../../../etc", MountLabel: "m",
			Sysctl: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "2"},
			Namespaces: []specs.LinuxNamespace{
				{Type: "network", Path: "/proc/1/ns/net"},
				{Type: "pid", Path: "/evil"},
				{Type: "user"},
			},
		},
	}
	sysctls, err := adapt(s, surroundings{
		bundle: "/b", hostname: "pod", cgroup: "/coco/c",
		ns: map[string]string{"ipc": "/i", "uts": "/u"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.Spec{
		Process: &specs.Process{}, Root: &specs.Root{Path: "/b/rootfs"},
		Linux: &specs.Linux{
			CgroupsPath: "/coco/c", Sysctl: map[string]string{"kernel.shmmax": "2"},
			Namespaces: []specs.LinuxNamespace{
				{Type: "mount"},
				{Type: "cgroup"},
				{Type: "pid"},
				{Type: "ipc", Path: "/i"},
				{Type: "uts", Path: "/u"},
				{Type: "user"},
			},
		},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("adapt (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"net.ipv4.ip_forward": "1"}, sysctls); d != "" {
		t.Error(d)
	}
}

func TestAdaptRefuses(t *testing.T) {
	base := func() *specs.Spec {
		return &specs.Spec{Process: &specs.Process{}, Root: &specs.Root{}, Linux: &specs.Linux{}}
	}
	bind := func(src string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/d", Source: src, Type: "bind"}}
		}
	}
	for name, tc := range map[string]struct {
		spoil func(*specs.Spec)
		class func(error) bool
	}{
		"a hook": {
			func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x"}}} },
			errdefs.IsNotImplemented,
		},
		"a mount of /":      {bind("/"), errdefs.IsInvalidArgument},
		"a relative mount":  {bind(contract.GuestRoot[1:] + "/x"), errdefs.IsInvalidArgument},
		"a mount beside":    {bind(contract.GuestRoot + "-x/y"), errdefs.IsInvalidArgument},
		"a mount by dots":   {bind(contract.GuestRoot + "/shared/../../../etc"), errdefs.IsInvalidArgument},
		"everybody's files": {bind(contract.FilesDir), errdefs.IsInvalidArgument},
		"its own bundle":    {bind(contract.GuestRoot + "/c"), errdefs.IsInvalidArgument},
		"an option that says": {func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Source: "/etc", Options: []string{"rbind"}}}
		}, errdefs.IsInvalidArgument},
	} {
		s := base()
		tc.spoil(s)
		if _, err := adapt(s, surroundings{bundle: contract.GuestRoot + "/c"}); !tc.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ok := base()
	bind(contract.FilesDir + "/c-0123456789abcdef-hosts")(ok)
	if _, err := adapt(ok, surroundings{bundle: contract.GuestRoot + "/c"}); err != nil {
		t.Error(err)
	}
}

func TestParseNetDev(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:     123       4    5    6    0     0          0         0      789      10   11   12    0     0       0          0
  bad0:     x 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
`
	got := parseNetDev(strings.NewReader(text))
	if len(got) != 1 || fmt.Sprint(got[0].Name, got[0].RxBytes, got[0].RxPackets, got[0].RxErrors,
		got[0].RxDropped) != "eth01234 5 6" && got[0].RxBytes != 123 ||
		got[0].TxBytes != 789 || got[0].TxPackets != 10 || got[0].TxErrors != 11 || got[0].TxDropped != 12 {
		t.Errorf("parseNetDev = %v", got)
	}
}

func FuzzHostText(f *testing.F) {
	f.Add("net.ipv4.x", contract.GuestRoot+"/a")
	f.Fuzz(func(t *testing.T, a, b string) {
		defer worktest.Bound(t, len(a)+len(b))()
		if p, err := sysctl.File(a); err == nil && (strings.Contains(p, "..") || !strings.HasPrefix(p, "net/")) {
			t.Errorf("File(%q) = %q", a, p)
		}
		if checkContainerID(a) == nil && filepath.Dir(filepath.Join(contract.GuestRoot, a)) != contract.GuestRoot {
			t.Errorf("id %q leaves the directory", a)
		}
		err := checkMounts([]specs.Mount{{Source: b, Type: "bind"}}, contract.GuestRoot+"/c")
		if err == nil && !strings.HasPrefix(filepath.Clean(b), contract.GuestRoot+"/") {
			t.Errorf("mount of %q", b)
		}
		parseNetDev(strings.NewReader(a))
	})
}
