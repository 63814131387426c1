// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"strings"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
)

// said is the text of the first difference without its code, or "".
func said(d *Diffs) string {
	if d.First == nil {
		return ""
	}
	return strings.TrimPrefix(d.First.Error(), "denied [value] ")
}

func newDiffs() *Diffs {
	return &Diffs{Fields: map[string]string{}, Volumes: map[string]string{}, Drop: map[string]bool{}, Root: "c"}
}

// TestWhatADenialSays: the texts of each kind of comparison.
func TestWhatADenialSays(t *testing.T) {
	long := strings.Repeat("a", 119)
	for _, tc := range []struct {
		compare func(*Diffs)
		want    string
	}{
		{func(d *Diffs) { Same(d, "f", "m", "a", "a") }, ""},
		{func(d *Diffs) { Same(d, "f", "m", "a", "b") }, `f: expected "a", got "b"; allow with: c.m = "b"`},
		{func(d *Diffs) { Same(d, "f", "m", 1, 2) }, `f: expected 1, got 2; allow with: c.m = 2`},
		{func(d *Diffs) { Fixed(d, "f", true, false) }, `f: expected true, got false`},
		{func(d *Diffs) { d.List("f", "m", []string{"a", "b"}, []string{"a", "b"}) }, ""},
		{
			func(d *Diffs) { d.List("f", "m", []string{"a", "b"}, []string{"a", "c"}) },
			`f[1]: expected "b", got "c"; allow with: c.m = ["a","c"]`,
		},
		{func(d *Diffs) { d.List("f", "", []string{"a"}, []string{"a", "b"}) }, `f: expected ["a"], got ["a","b"]`},
		{func(d *Diffs) { d.Set("f", "m", []string{"a", "b"}, []string{"b", "a"}) }, ""},
		{
			func(d *Diffs) { d.Set("f", "m", []string{"a"}, []string{"b", "a"}) },
			`f: expected no "b", got it; allow with: c.m with "b"`,
		},
		{
			func(d *Diffs) { d.Set("f", "m", []string{"a", "b"}, []string{"b"}) },
			`f: expected "a", got none; allow with: c.m without "a"`,
		},
		{func(d *Diffs) { d.Set("f", "m", []string{"a"}, []string{"a", "a"}) }, `f: expected ["a"], got ["a","a"]`},
		{
			func(d *Diffs) { d.Texts("f", "m", nil, map[string]string{"k": "v"}) },
			`f[k]: expected none, got "v"; allow with: c.m with "k": "v"`,
		},
		{
			func(d *Diffs) { d.Texts("f", "m", map[string]string{"k": "v"}, map[string]string{"k": "w"}) },
			`f[k]: expected "v", got "w"; allow with: c.m[k] = "w"`,
		},
		{
			func(d *Diffs) { d.Texts("f", "m", map[string]string{"k": "v"}, nil) },
			`f[k]: expected "v", got none; allow with: c.m without "k"`,
		},
		{func(d *Diffs) { Fixed(d, "f", "a\xff\n", "") }, `f: expected "a?\n", got ""`},
		{func(d *Diffs) { Fixed(d, "f", long+"b", "") }, `f: expected "` + long + `b", got ""`},
		{func(d *Diffs) { Fixed(d, "f", long+"bc", "") }, `f: expected "` + long + `b"… of 121 bytes, got ""`},
		{func(d *Diffs) { Fixed(d, "f", long+"ä", "") }, `f: expected "` + long + `"… of 121 bytes, got ""`},
		{
			func(d *Diffs) { d.List("f", "", []string{long, long, "x", "y"}, nil) },
			`f: expected ["` + long + `","` + long + `",… 4 in all], got []`,
		},
		{func(d *Diffs) { d.Texts("f", "m", map[string]string{long + "b": ""}, nil) }, `f[` + long +
			`b]: expected "", got none; allow with: c.m without "` + long + `b"`},
		{func(d *Diffs) { d.Texts("f", "m", map[string]string{long + "ä": ""}, nil) }, `f[` + long +
			`…]: expected "", got none; allow with: c.m without "` + long + `"… of 121 bytes`},
	} {
		d := newDiffs()
		if tc.compare(d); said(d) != tc.want {
			t.Errorf("said %s\nwant %s", said(d), tc.want)
		}
		n := d.N
		if tc.compare(d); said(d) != tc.want || d.N != 2*n {
			t.Errorf("a second time: %d differences after %d, said %s", d.N, n, said(d))
		}
	}
}

// TestADenialEndsAtItsBound: a text of exactly the bound stays whole.
func TestADenialEndsAtItsBound(t *testing.T) {
	text := func(want string) string { return (&Denial{Code: Value, Field: "f", Want: want, Got: "x"}).Error() }
	fill := strings.Repeat("a", MaxDenial-len(text("")))
	if s := text(fill); len(s) != MaxDenial || strings.HasSuffix(s, "…") {
		t.Errorf("%d bytes, ends with %q", len(s), s[len(s)-5:])
	}
	if s := text(fill + "ä"); len(s) > MaxDenial || !strings.HasSuffix(s, "…") {
		t.Errorf("%d bytes, ends with %q", len(s), s[len(s)-5:])
	}
}

// asked is a container of a policy and the request that it admits.
type asked struct {
	p   *policy.Policy
	c   *policy.Container
	req *pb.CreateContainerRequest
	box *Pod
}

func ask() asked {
	const id = "id"
	storage := func(driver, source, fstype, at string, options, driverOptions []string) *pb.Storage {
		return &pb.Storage{
			Driver: driver, Source: source, Fstype: fstype, MountPoint: at, Options: options, DriverOptions: driverOptions,
		}
	}
	upper := contract.UpperDir + "/" + id
	return asked{
		p: &policy.Policy{},
		c: &policy.Container{Name: "web", Linux: policy.Linux{Seccomp: []string{policy.NoSeccomp}}},
		req: &pb.CreateContainerRequest{
			ContainerId: id, ExecId: id, OCI: &pb.Spec{
				Version: "1.2.1", Process: &pb.Process{}, Root: &pb.Root{Path: contract.Rootfs(id)},
				Linux: &pb.Linux{CgroupsPath: contract.CgroupBase + id},
			},
			Storages: []*pb.Storage{
				storage(contract.DriverSCSI, "0:1", "ext4", upper, []string{"mode=700"},
					[]string{contract.OptionEphemeralKey, contract.OptionCreateFS}),
				storage(contract.DriverOverlay, "none", "overlay", contract.Rootfs(id),
					[]string{"lowerdir=", "upperdir=" + upper + "/fs", "workdir=" + upper + "/work"}, []string{
						contract.OptionCreateDirectory + upper + "/fs", contract.OptionCreateDirectory + upper + "/work",
					}),
			},
		},
		box: &Pod{Hostname: "web-0", Live: map[string]string{"db": "id-db"}},
	}
}

// volumes puts a volume and a mount of it before the storages of the root file system.
func (a asked) volume(v policy.Volume, at string, list ...*pb.Storage) {
	a.p.Volumes = append(a.p.Volumes, v)
	a.c.Mounts = append(a.c.Mounts, policy.Mount{
		Destination: "/v", Type: "bind", Source: policy.Source{Volume: &policy.Use{Name: v.Name}},
	})
	a.req.OCI.Mounts = append(a.req.OCI.Mounts, &pb.Mount{Destination: "/v", Type: "bind", Source: at})
	a.req.Storages = append(list, a.req.Storages...)
}

func (a asked) env(list ...string) { a.req.OCI.Process.Env = list }
func (a asked) may(name string, v policy.Env) {
	v.Name = name
	a.c.Process.Env = append(a.c.Process.Env, v)
}

func is(s string) policy.Value { return policy.Value{Is: &s} }

type change struct {
	what string
	make func(asked)
	want string
}

func (c change) test(t *testing.T) {
	t.Helper()
	a, d := ask(), newDiffs()
	c.make(a)
	d.Container(a.p, a.c, a.req, a.box)
	if said(d) != c.want || (d.N == 0) != (c.want == "") {
		t.Errorf("%s: %d differences\nsaid %s\nwant %s", c.what, d.N, said(d), c.want)
	}
}

// TestEachFieldOfAContainer: what single changes of the shim's requests (package engine) do not reach.
func TestEachFieldOfAContainer(t *testing.T) {
	for _, c := range []change{
		{"nothing", func(asked) {}, ""},
		{"the host name", func(a asked) { a.c.Hostname, a.req.OCI.Hostname = true, "web-0" }, ""},
		{"another host name", func(a asked) { a.c.Hostname = true }, `OCI.Hostname: expected "web-0", got ""`},
		{"a version of 32 bytes", func(a asked) { a.req.OCI.Version = strings.Repeat("1", 32) }, ""},
		{
			"a long version", func(a asked) { a.req.OCI.Version = strings.Repeat("1", 33) },
			`OCI.Version: expected a version, got "` + strings.Repeat("1", 33) + `"`,
		},
		{"no version", func(a asked) { a.req.OCI.Version = "1 2" }, `OCI.Version: expected a version, got "1 2"`},
		{"stdin", func(a asked) { a.c.Allow.Stdin, a.req.StdinPort = true, 9 }, ""},
		{
			"an annotation that may be missing",
			func(a asked) { a.c.Annotations = []policy.Annotation{{Key: "k", Value: is("v"), Optional: true}} },
			"",
		},
		{
			"an annotation that is missing",
			func(a asked) { a.c.Annotations = []policy.Annotation{{Key: "k", Value: is("")}} },
			`OCI.Annotations[k]: expected "", got none; allow with: c.annotations[k].optional = true`,
		},
		{
			"processes of a container that lives",
			func(a asked) { a.c.Linux.PIDs, a.req.PidContainer = "db", "id-db" }, "",
		},
		{
			"processes of one that does not",
			func(a asked) { a.c.Linux.PIDs = "gone" },
			`pid_container: expected "(no container gone lives)", got ""`,
		},
		{"limits from the host", func(a asked) {
			a.c.Process.Rlimits.FromHost = true
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_CORE"}}
		}, ""},
		{"a limit that is none", func(a asked) {
			a.c.Process.Rlimits.FromHost = true
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_"}}
		}, `OCI.Process.Rlimits[RLIMIT_]: expected the name of a limit, got "RLIMIT_"`},
		{"a limit in small letters", func(a asked) {
			a.c.Process.Rlimits.FromHost = true
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_core"}}
		}, `OCI.Process.Rlimits[RLIMIT_core]: expected the name of a limit, got "RLIMIT_core"`},
		{"a limit without its prefix", func(a asked) {
			a.c.Process.Rlimits.FromHost = true
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "CORE"}}
		}, `OCI.Process.Rlimits[CORE]: expected the name of a limit, got "CORE"`},
		{"a limit with a line of its own in its name", func(a asked) {
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_X\ndenied [x] b/c", Soft: 1, Hard: 2}}
		}, `OCI.Process.Rlimits[RLIMIT_X?denied [x] b/c]: expected none, got {RLIMIT_X\ndenied [x] b/c 1 2}; ` +
			`allow with: c.process.rlimits.limits with {RLIMIT_X\ndenied [x] b/c 1 2}`},
		{"another soft limit", func(a asked) {
			a.c.Process.Rlimits.Limits = []policy.Rlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 2}}
		}, `OCI.Process.Rlimits[RLIMIT_CORE]: expected {RLIMIT_CORE 1 2}, got {RLIMIT_CORE 2 2}; ` +
			`allow with: c.process.rlimits.limits with {RLIMIT_CORE 2 2}`},
		{"another hard limit", func(a asked) {
			a.c.Process.Rlimits.Limits = []policy.Rlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}
			a.req.OCI.Process.Rlimits = []*pb.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 3}}
		}, `OCI.Process.Rlimits[RLIMIT_CORE]: expected {RLIMIT_CORE 1 2}, got {RLIMIT_CORE 1 3}; ` +
			`allow with: c.process.rlimits.limits with {RLIMIT_CORE 1 3}`},
	} {
		c.test(t)
	}
}

func TestEachKindOfVariable(t *testing.T) {
	const sealed = "sealed.eyJhbGciOiJFUzI1NiJ9.eyJ0eXBlIjoidmF1bHQifQ.AAAA"
	for _, c := range []change{
		{"one of several", func(a asked) {
			a.may("A", policy.Env{Value: policy.Value{OneOf: []string{"x", "y"}}})
			a.env("A=y")
		}, ""},
		{"none of several", func(a asked) {
			a.may("A", policy.Env{Value: policy.Value{OneOf: []string{"x", "y"}}})
			a.env("A=z")
		}, `OCI.Process.Env[A]: expected one of ["x","y"], got another text of 1 bytes; ` +
			`allow with: c.process.env[A] with this text`},
		{"a type", func(a asked) { a.may("A", policy.Env{Value: policy.Value{Type: policy.TypePort}}); a.env("A=80") }, ""},
		{"another type", func(a asked) {
			a.may("A", policy.Env{Value: policy.Value{Type: policy.TypePort}})
			a.env("A=x")
		}, `OCI.Process.Env[A]: expected a text of type port, got another text of 1 bytes; ` +
			`allow with: c.process.env[A] with this text`},
		{"a variable that may be missing", func(a asked) { a.may("A", policy.Env{Value: is("x"), Optional: true}) }, ""},
		{
			"a variable that is missing", func(a asked) { a.may("A", policy.Env{Value: is("x")}) },
			`OCI.Process.Env[A]: expected "x", got none; allow with: c.process.env[A].optional = true`,
		},
		{"no name", func(a asked) { a.env("=x") }, `OCI.Process.Env[0]: expected NAME=VALUE, got another text of 2 bytes`},
		{"no value", func(a asked) { a.env("A") }, `OCI.Process.Env[0]: expected NAME=VALUE, got another text of 1 bytes`},
		{
			"twice", func(a asked) { a.may("A", policy.Env{Value: is("x")}); a.env("A=x", "A=x") },
			`OCI.Process.Env[A]: expected it once, got it twice`,
		},
		{
			"not of the policy", func(a asked) { a.env("A=xyz") },
			`OCI.Process.Env[A]: expected none, got a text of 3 bytes; allow with: c.process.env with an entry for "A"`,
		},
		{"a sealed text for any", func(a asked) {
			a.may("A", policy.Env{Value: policy.Value{Type: policy.TypeAny}})
			a.env("A=" + sealed)
		}, `OCI.Process.Env[A]: expected no sealed text: the policy does not say which resource it may open, got another ` +
			`text of 55 bytes; allow with: c.secrets with a sealed entry for "A"`},
		{"of services", func(a asked) {
			a.env("DB_SERVICE_HOST=x", "DB_SERVICE_PORT=1", "DB_PORT=1", "DB_SERVICE_PORT_WEB=1",
				"DB_PORT_1_TCP=x", "DB_PORT_1_TCP_PORT=1")
		}, ""},
	} {
		c.test(t)
	}
	a, d := ask(), newDiffs()
	a.env("OTHER=1", "=", "X", "OTHER=1", "DB_PORT=1")
	a.may("A", policy.Env{Value: is("x")})
	a.may("B", policy.Env{Value: is("x")})
	d.Container(a.p, a.c, a.req, a.box)
	if d.N != 6 || len(d.Drop) != 1 || !d.Drop["DB_PORT"] {
		t.Errorf("%d differences, dropped %v", d.N, d.Drop)
	}
	a, d = ask(), newDiffs()
	a.env("DB_PORT=1", "WEB_PORT=2")
	a.may("DB_PORT", policy.Env{Value: is("1")})
	a.may("WEB_PORT", policy.Env{Value: is("2")})
	d.Container(a.p, a.c, a.req, a.box)
	if d.N != 0 || len(d.Drop) != 0 {
		t.Errorf("variables like those of services, declared: %s, dropped %v", said(d), d.Drop)
	}
	for name, want := range map[string]bool{
		"A_PORT": true, "_PORT": false, "A_SERVICE_PORT_": true, "_SERVICE_PORT_X": false, "A_SERVICE_HOST": true,
		"_SERVICE_HOST": false, "A_PORT_80_TCP": true, "_PORT_80_TCP": false, "A_PORT_80_TCP_ADDR": true,
		"A_PORT_80_TCP_NAME": false, "A_PORT_0_TCP": false, "A_PORT_80_ICMP": false, "a_PORT": false,
		"A_PORT_B_PORT_80_UDP": true, "A_PORT_B": false, "A_SERVICE_PORTS": false, "A_PORT_80_TCP_": false,
		"A_PORT_PORT_80_TCP": true, "PORT": false,
	} {
		if IsService(name) != want {
			t.Errorf("IsService(%s) = %v", name, !want)
		}
	}
}

func TestLinesOfResolvConf(t *testing.T) {
	for line, want := range map[string]bool{
		"nameserver 10.0.0.1": true, "search a b": true, "domain a": true, "options ndots:5": true, "sortlist x": false,
		"nameserver 1\n": false, "nameserver": true,
	} {
		d := newDiffs()
		if d.dns(policy.DNS{FromHost: true}, []string{line}); (d.N == 0) != want {
			t.Errorf("%q: %s", line, said(d))
		}
		d = newDiffs()
		if d.dns(policy.DNS{Lines: []string{line}}, []string{line}); d.N != 0 {
			t.Errorf("%q, of the policy: %s", line, said(d))
		}
		if d.dns(policy.DNS{}, []string{line}); d.N != 1 {
			t.Errorf("%q, not of the policy: %d differences", line, d.N)
		}
	}
}

// TestExecsOfAContainer: a terminal brings TERM, and sealed variables are not repeated.
func TestExecsOfAContainer(t *testing.T) {
	c := &policy.Container{Process: policy.Process{Env: []policy.Env{
		{Name: "S", Value: policy.Value{Type: policy.TypeSealed}}, {Name: "P", Value: is("x")},
	}}, Secrets: []policy.Secret{{Env: "S", Sealed: true}, {Env: "P"}, {File: "/f", Sealed: true}}}
	for what, tc := range map[string]struct {
		tty  bool
		env  []string
		same bool
	}{
		"plain":                     {false, []string{"P=x"}, true},
		"without a variable":        {false, nil, false},
		"with TERM":                 {true, []string{"P=x", "TERM=xterm"}, true},
		"without TERM":              {true, []string{"P=x"}, true},
		"another TERM":              {true, []string{"P=x", "TERM=vt100"}, false},
		"TERM without a terminal":   {false, []string{"P=x", "TERM=xterm"}, false},
		"a sealed text, again":      {false, []string{"P=x", "S=sealed.eyJh.eyJ0.AAAA"}, true},
		"another text in its place": {false, []string{"P=x", "S=y"}, false},
	} {
		d := newDiffs()
		cc := *c
		cc.Process.TTY = tc.tty
		if d.Exec(&cc, &pb.Process{Terminal: tc.tty, Env: tc.env}); (d.N == 0) != tc.same || !d.Drop["S"] || d.Drop["P"] {
			t.Errorf("%s: %s, dropped %v", what, said(d), d.Drop)
		}
	}
	if c.Process.Env[0].Optional {
		t.Error("the policy was changed")
	}
	own := &policy.Container{Process: policy.Process{Env: []policy.Env{{Name: "TERM", Value: is("dumb")}}}}
	d := newDiffs()
	if d.Exec(own, &pb.Process{Terminal: true, Env: []string{"TERM=xterm"}}); d.N != 1 {
		t.Errorf("the policy's TERM, and another: %d differences", d.N)
	}
}

// TestContainersForDebugging: which sources of mounts become which entries.
func TestContainersForDebugging(t *testing.T) {
	volumes := map[string]string{"v": contract.FilesDir + "/sandbox-v", "own": request.GuestCopy("id", "/copy")}
	for what, tc := range map[string]struct {
		m    *pb.Mount
		want string
	}{
		"proc":           {&pb.Mount{Destination: "/proc", Type: "proc", Source: "proc"}, "is"},
		"a bound proc":   {&pb.Mount{Destination: "/proc", Type: "proc", Source: "/x", Options: []string{"bind"}}, "copy"},
		"rbind":          {&pb.Mount{Destination: "/proc", Type: "proc", Source: "/x", Options: []string{"rbind"}}, "copy"},
		"another type":   {&pb.Mount{Destination: "/x", Type: "ext4", Source: "/dev/vda"}, "copy"},
		"the shared shm": {&pb.Mount{Destination: "/dev/shm", Type: "bind", Source: contract.ShmDir}, "shm"},
		"a volume":       {&pb.Mount{Destination: "/x", Type: "bind", Source: volumes["v"]}, "volume"},
		"its own copy":   {&pb.Mount{Destination: "/copy", Type: "bind", Source: volumes["own"]}, "copy"},
	} {
		s := debugSource("id", tc.m, volumes)
		got := ""
		switch {
		case s.Is != nil:
			got = "is"
		case s.Shm:
			got = "shm"
		case s.Copy != nil:
			got = "copy"
		case s.Volume != nil:
			got = "volume"
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", what, got, tc.want)
		}
	}
	a := ask()
	a.req.SandboxPidns = true
	if c := Debug(a.req, a.box, nil); c.Linux.PIDs != policy.PodPIDs {
		t.Errorf("processes of the pod: %q", c.Linux.PIDs)
	}
	a.req.Storages = make([]*pb.Storage, maxDebug)
	if d := Long(a.req); d != nil {
		t.Error(d)
	}
	a.req.Storages = make([]*pb.Storage, maxDebug+1)
	if Long(a.req) == nil {
		t.Error("a list that is too long is allowed")
	}
}
