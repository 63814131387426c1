// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"encoding/json"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

func p[T any](v T) *T { return &v }

// plain is what engines send for an ordinary container.
func plain() *specs.Spec {
	var ns []specs.LinuxNamespace
	for _, k := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace,
		specs.MountNamespace, specs.NetworkNamespace,
	} {
		ns = append(ns, specs.LinuxNamespace{Type: k})
	}
	return &specs.Spec{
		Version: "1.2.0", Hostname: "box", Root: &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
		Linux:   &specs.Linux{Namespaces: ns, CgroupsPath: "/default/x"},
	}
}

func convert(t *testing.T, s *specs.Spec) Output {
	t.Helper()
	out, err := Convert(Input{ID: "c1", Spec: s})
	if err != nil {
		t.Fatalf("Convert() = %v", err)
	}
	return out
}

func TestConvertTakesTheHostOut(t *testing.T) {
	s := plain()
	s.Annotations = map[string]string{"a": "b", contract.KataInitdata: "x", contract.KataPolicy: "y"}
	s.Hooks = &specs.Hooks{
		Poststop: []specs.Hook{{Path: "/host"}},
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	s.Domainname = "example.org"
	want := &agent.Spec{
		Version: "1.2.0", Hostname: "box",
		Root:        &agent.Root{Path: "/run/kata-containers/c1/rootfs", Readonly: true},
		Process:     &agent.Process{Args: []string{"true"}, Cwd: "/", User: &agent.User{}},
		Annotations: map[string]string{"a": "b"},
		Linux: &agent.Linux{
			CgroupsPath: "/coco/c1",
			Sysctl:      map[string]string{"kernel.domainname": "example.org"},
			Namespaces:  []*agent.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
		},
	}
	if diff := cmp.Diff(want, convert(t, s).OCI, protocmp.Transform()); diff != "" {
		t.Errorf("Convert() (-want +got):\n%s", diff)
	}
}

func TestTheLastSettingOfAVariableCounts(t *testing.T) {
	s := plain()
	s.Process.Env = []string{"PATH=/bin", "A=image", "B=", "A=pod", "C", "C"}
	want := []string{"PATH=/bin", "A=pod", "B=", "C"}
	if got := convert(t, s).OCI.GetProcess().GetEnv(); !slices.Equal(got, want) {
		t.Errorf("env = %q, want %q", got, want)
	}
}

func TestAWorkingDirectoryIsInItsShortestForm(t *testing.T) {
	for dir, want := range map[string]string{
		"/srv/": "/srv", "/": "/", "/a//./b": "/a/b", "/link/../x/": "/link/../x/", "": "",
	} {
		s := plain()
		s.Process.Cwd = dir
		if got := convert(t, s).OCI.GetProcess().GetCwd(); got != want {
			t.Errorf("cwd %q becomes %q, want %q", dir, got, want)
		}
	}
}

func TestPathsOfTheHostsCPUsAreNotMasked(t *testing.T) {
	s := plain()
	s.Linux.MaskedPaths = []string{
		"/proc/keys", "/sys/devices/system/cpu/cpu0/thermal_throttle", "/sys/devices/system/cpu/cpu127/thermal_throttle",
		"/sys/devices/system/cpu/cpufreq",
	}
	want := []string{"/proc/keys", "/sys/devices/system/cpu/cpufreq"}
	if got := convert(t, s).OCI.GetLinux().GetMaskedPaths(); !slices.Equal(got, want) {
		t.Errorf("masked paths = %q, want %q", got, want)
	}
}

func TestConvertKeepsWhatTheGuestEnforces(t *testing.T) {
	s := plain()
	s.Process = &specs.Process{
		Args: []string{"sh", "-c", "x"}, Env: []string{"A=b"}, Cwd: "/w", NoNewPrivileges: true, Terminal: true,
		User:         specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}, Umask: p(uint32(0o022))},
		ConsoleSize:  &specs.Box{Height: 24, Width: 80},
		Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Ambient: []string{"CAP_CHOWN"}},
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}},
		OOMScoreAdj:  p(-500), ApparmorProfile: "docker-default", SelinuxLabel: "system_u:system_r:container_t:s0:c1,c2",
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
	s.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: p(uint(38)), Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}, {
			Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: p(uint(38)),
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: specs.OpMaskedEqual}},
		}},
	}
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
	s.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: p(int64(5)), Swap: p(int64(-1)), Swappiness: p(uint64(60))},
		CPU: &specs.LinuxCPU{
			Shares: p(uint64(512)), Quota: p(int64(7)), Period: p(uint64(8)),
			Cpus: "0-3", Mems: "0",
		},
		Pids: &specs.LinuxPids{Limit: p(int64(9))},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {
			Allow: true, Type: "c", Major: p(int64(1)),
			Minor: p(int64(3)), Access: "rwm",
		}},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}},
		BlockIO:        &specs.LinuxBlockIO{Weight: p(uint16(100))},
		Unified:        map[string]string{"memory.oom.group": "1", "memory.high": "4096", "cpuset.cpus": "0"},
	}
	got := convert(t, s).OCI
	wantProcess := &agent.Process{
		Args: []string{"sh", "-c", "x"}, Env: []string{"A=b"}, Cwd: "/w", NoNewPrivileges: true, Terminal: true,
		User:         &agent.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}},
		ConsoleSize:  &agent.Box{Height: 24, Width: 80},
		Capabilities: &agent.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Ambient: []string{"CAP_CHOWN"}},
		Rlimits:      []*agent.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}},
		OOMScoreAdj:  -500,
	}
	wantLinux := &agent.Linux{
		CgroupsPath: "/coco/c1",
		Namespaces:  []*agent.LinuxNamespace{{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
		MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		Devices: []*agent.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: 0o666}},
		Seccomp: &agent.LinuxSeccomp{
			DefaultAction: "SCMP_ACT_ERRNO", DefaultErrnoRet: p(uint32(38)), Architectures: []string{"SCMP_ARCH_X86_64"},
			Syscalls: []*agent.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW"}, {
				Names: []string{"clone"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: &agent.LinuxSyscall_Errnoret{Errnoret: 38},
				Args: []*agent.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "SCMP_CMP_MASKED_EQ"}},
			}},
		},
		Resources: &agent.LinuxResources{
			Memory:  &agent.LinuxMemory{Limit: 5, Swap: -1},
			CPU:     &agent.LinuxCPU{Shares: 512, Quota: 7, Period: 8},
			Pids:    &agent.LinuxPids{Limit: 9},
			Unified: map[string]string{"memory.oom.group": "1", "memory.high": "4096"},
			Devices: []*agent.LinuxDeviceCgroup{
				{Major: -1, Minor: -1, Access: "rwm"},
				{Allow: true, Type: "c", Major: 1, Minor: 3, Access: "rwm"},
			},
		},
	}
	if diff := cmp.Diff(wantProcess, got.GetProcess(), protocmp.Transform()); diff != "" {
		t.Errorf("process (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantLinux, got.GetLinux(), protocmp.Transform()); diff != "" {
		t.Errorf("linux (-want +got):\n%s", diff)
	}
}

func TestFuseAndTunAreTheGuests(t *testing.T) {
	mode := os.FileMode(0o600)
	s := plain()
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
		{Path: "/dev/other", Type: "c", Major: 10, Minor: 200, FileMode: &mode, UID: new(uint32(5))},
	}
	out, err := Convert(Input{ID: "c", Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	want := []*agent.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: 0o666},
		{Path: "/dev/other", Type: "c", Major: 10, Minor: 200, FileMode: 0o600, UID: 5},
	}
	if d := cmp.Diff(want, out.OCI.Linux.Devices, protocmp.Transform()); d != "" {
		t.Errorf("devices (-want +got):\n%s", d)
	}
	for _, d := range []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "b", Major: 10, Minor: 229},
		{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232},
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 1},
	} {
		s.Linux.Devices = []specs.LinuxDevice{d}
		if _, err := Convert(Input{ID: "c", Spec: s}); err == nil {
			t.Errorf("%s (%s %d:%d) of the host is let through", d.Path, d.Type, d.Major, d.Minor)
		}
	}
}

func TestPrivilegedMeansTheGuestsDevices(t *testing.T) {
	s := plain()
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/sda", Type: "b", Major: 8},
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Access: "rwm"},
	}}
	l := convert(t, s).OCI.GetLinux()
	if len(l.GetDevices()) != 1 || l.GetDevices()[0].GetPath() != "/dev/null" {
		t.Errorf("devices = %v, want /dev/null only: the agent gives the guest's", l.GetDevices())
	}
	if rules := l.GetResources().GetDevices(); len(rules) != 2 || !rules[1].GetAllow() {
		t.Errorf("rules = %v", rules)
	}
}

func TestConvertRefusesByName(t *testing.T) {
	for _, tt := range []struct {
		want   string
		change func(*specs.Spec)
	}{
		{"process.args", func(s *specs.Spec) { s.Process.Args = nil }},
		{"process.args[1] holds a zero byte", func(s *specs.Spec) { s.Process.Args = []string{"echo", "a\x00b"} }},
		{"process.env[0] holds a zero byte", func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }},
		{"process.cwd holds a zero byte", func(s *specs.Spec) { s.Process.Cwd = "/\x00" }},
		{"process.commandLine", func(s *specs.Spec) { s.Process.CommandLine = "x" }},
		{"process.user.umask 077", func(s *specs.Spec) { s.Process.User.Umask = p(uint32(0o077)) }},
		{"process.scheduler", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} }},
		{"process.ioPriority", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} }},
		{"process.execCPUAffinity", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{} }},
		{`process.apparmorProfile "mine"`, func(s *specs.Spec) { s.Process.ApparmorProfile = "mine" }},
		{"process.selinuxLabel", func(s *specs.Spec) { s.Process.SelinuxLabel = "u:r:mine_t:s0" }},
		{"windows: only Linux", func(s *specs.Spec) { s.Windows = &specs.Windows{} }},
		{"hooks.createContainer: /bin/x", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/x"}}}
		}},
		{"no pid namespace", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }},
		{"no ipc namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces[:1], s.Linux.Namespaces[2:]...)
		}},
		{"user namespaces", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}},
		{"linux.netDevices", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }},
		{"linux.intelRdt", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }},
		{"linux.memoryPolicy", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} }},
		{`linux.personality "LINUX32"`, func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		}},
		{"linux.timeOffsets", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} }},
		{"/dev/sda (b 8:0)", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}}
		}},
		{"/dev/null (c 9:9)", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 9, Minor: 9}}
		}},
		{"linux.seccomp: SCMP_ACT_NOTIFY", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{Syscalls: []specs.LinuxSyscall{{Action: specs.ActNotify}}}
		}},
		{"hugepageLimits", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}}
		}},
		{"resources.network", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: p(uint32(1))}}
		}},
		{"resources.rdma", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"x": {}}}
		}},
		{`unified "io.max"`, func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"io.max": "8:0 rbps=1"}}
		}},
		{`unified "cgroup.procs"`, func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}
		}},
		{"disableOOMKiller", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: p(true)}}
		}},
		{"cpu.realtimeRuntime", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: p(int64(1))}}
		}},
		{"cpu.burst", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: p(uint64(1))}}
		}},
		{"cpu.idle", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: p(int64(1))}}
		}},
		{"resources.blockIO", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{}}}}
		}},
		{"mounts[0] (/x): a file system of type \"ext4\"", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Type: "ext4", Source: "/dev/sda"}}
		}},
		{"mounts[0] (/x): the source", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "here"}}
		}},
		{"mounts[0] (/x): idmapped", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/y", UIDMappings: []specs.LinuxIDMapping{{}}}}
		}},
	} {
		t.Run(tt.want, func(t *testing.T) {
			s := plain()
			tt.change(s)
			_, err := Convert(Input{ID: "c1", Spec: s})
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Convert() = %v, want invalid argument with %q", err, tt.want)
			}
		})
	}
}

func TestConvertTellsEveryRefusalAtOnce(t *testing.T) {
	s := plain()
	s.Process.Scheduler, s.Linux.IntelRdt = &specs.Scheduler{}, &specs.LinuxIntelRdt{}
	_, err := Convert(Input{ID: "c1", Spec: s})
	if err == nil || !strings.Contains(err.Error(), "scheduler") || !strings.Contains(err.Error(), "intelRdt") {
		t.Errorf("Convert() = %v, want both", err)
	}
}

func TestANameInTheGuestIsNeverTooLong(t *testing.T) {
	id := strings.Repeat("a", 64)
	for _, base := range []string{
		strings.Repeat("n", 255), strings.Repeat("ö", 127),
		"x" + strings.Repeat("\U0001f40b", 63),
	} {
		got := path.Base(GuestCopy(id, "/mnt/"+base))
		if len(got) > 255 || len(got) < 252 || !utf8.ValidString(got) || !strings.HasPrefix(got, id+"-") {
			t.Errorf("GuestCopy(…%s) has the name %q of %d bytes", base, got, len(got))
		}
	}
}

func TestMounts(t *testing.T) {
	guest := func(dst, base string) string {
		g := GuestCopy("c1", dst)
		if !strings.HasPrefix(g, "/run/kata-containers/shared/containers/c1-") || !strings.HasSuffix(g, "-"+base) {
			t.Errorf("GuestCopy(%s) = %s", dst, g)
		}
		return g
	}
	hosts := guest("/etc/hosts", "hosts")
	for _, tt := range []struct {
		name   string
		in     specs.Mount
		shm    bool
		want   *agent.Mount
		copies []Copy
	}{
		{
			name: "proc stays", in: specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid"}},
			want: &agent.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid"}},
		},
		{
			name: "shm of its own stays", in: specs.Mount{
				Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
				Options: []string{"size=65536k"},
			},
			want: &agent.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"size=65536k"}},
		},
		{
			name: "shm of the pod is the guest's", shm: true, in: specs.Mount{
				Destination: "/dev/shm", Type: "bind",
				Source: "/run/x/shm", Options: []string{"rbind"},
			},
			want: &agent.Mount{Destination: "/dev/shm", Type: "bind", Source: contract.ShmDir, Options: []string{"rbind"}},
		},
		{
			name: "a bind by type is copied", in: specs.Mount{
				Destination: "/etc/hosts", Type: "bind", Source: "/var/hosts",
				Options: []string{"ro"},
			},
			want:   &agent.Mount{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: []string{"ro"}},
			copies: []Copy{{Source: "/var/hosts", Guest: hosts, Destination: "/etc/hosts"}},
		},
		{
			name: "a bind by option is copied", in: specs.Mount{
				Destination: "/etc/hosts", Source: "/var/../var/hosts",
				Options: []string{"rbind"},
			},
			want:   &agent.Mount{Destination: "/etc/hosts", Source: hosts, Options: []string{"rbind"}},
			copies: []Copy{{Source: "/var/hosts", Guest: hosts, Destination: "/etc/hosts"}},
		},
		{
			name: "a relative destination is below the root", in: specs.Mount{Destination: "dev/pts", Type: "devpts"},
			want: &agent.Mount{Destination: "/dev/pts", Type: "devpts"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := plain()
			s.Mounts = []specs.Mount{tt.in}
			out, err := Convert(Input{ID: "c1", Spec: s, SharedShm: tt.shm})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]*agent.Mount{tt.want}, out.OCI.GetMounts(), protocmp.Transform()); diff != "" {
				t.Errorf("mounts (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.copies, out.Copies); diff != "" {
				t.Errorf("copies (-want +got):\n%s", diff)
			}
		})
	}
}

func TestASharedProcessNamespaceIsAskedFor(t *testing.T) {
	s := plain()
	if convert(t, s).SandboxPidNS {
		t.Error("SandboxPidNS without a path")
	}
	s.Linux.Namespaces[0].Path = "/proc/1/ns/pid"
	if !convert(t, s).SandboxPidNS {
		t.Error("no SandboxPidNS with a path")
	}
}

// FuzzConvert holds the conversion to be total, deterministic, and without effect on its input.
func FuzzConvert(f *testing.F) {
	b, err := json.Marshal(plain())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(
		[]byte(
			`{"process":{"args":["x"]},"linux":{"resources":{"cpu":{}},"seccomp":{}},"mounts":[{"destination":"/..","type":"bind","source":"/a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		defer worktest.Bound(t, len(data))()
		var s specs.Spec
		if json.Unmarshal(data, &s) != nil {
			return
		}
		before, err := json.Marshal(s)
		if err != nil {
			return
		}
		a, err := Convert(Input{ID: "c1", Spec: &s})
		after, _ := json.Marshal(s)
		if string(before) != string(after) {
			t.Errorf("Convert changed its input:\n%s\n%s", before, after)
		}
		b, err2 := Convert(Input{ID: "c1", Spec: &s})
		if (err == nil) != (err2 == nil) || err == nil && !proto.Equal(a.OCI, b.OCI) {
			t.Errorf("Convert gives two results")
		}
		for _, c := range a.Copies {
			if !strings.HasPrefix(c.Guest, contract.FilesDir+"/c1-") ||
				strings.Count(c.Guest, "/") != strings.Count(contract.FilesDir, "/")+1 {
				t.Errorf("copy of %q leads to %q", c.Destination, c.Guest)
			}
		}
	})
}
