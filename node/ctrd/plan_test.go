// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ctrd

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/node/engine"
)

// files is a host of some files.
type files map[string]string

func (f files) ReadFile(path string) ([]byte, error) {
	text, ok := f[path]
	if !ok {
		return nil, nil
	}
	return []byte(text), nil
}

func (f files) Glob(pattern string) (out []string, err error) {
	for _, path := range slices.Sorted(maps.Keys(f)) {
		if ok, err := filepath.Match(pattern, path); err != nil || ok {
			out = append(out, path)
		}
	}
	return out, nil
}

// with returns the files after edits.
func (f files) with(edits []engine.Edit) files {
	out := maps.Clone(f)
	for _, e := range edits {
		out[e.Path] = string(e.Text)
		if e.Text == nil {
			delete(out, e.Path)
		}
	}
	return out
}

const (
	root   = "/etc/containerd/config.toml"
	dropIn = "/etc/containerd/conf.d/coco.toml"
)

var one = []engine.Handler{{Name: "coco", Shim: "/o/shim"}, {Name: "coco.x", Shim: "/o/shim", Config: "/o/x.toml"}}

func site(major int) Site { return Site{Root: root, DropIn: dropIn, Major: major} }

const block2 = `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.coco]`

func TestPlan(t *testing.T) {
	runc := map[string]any{"runc": map[string]any{
		"runtime_type": "io.containerd.runc.v2", "options": map[string]any{"SystemdCgroup": true},
	}}
	const dropIn2 = "version = 2\n" + block2
	const dropIn3 = "version = 3\n" + `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.coco]`
	const importLine = `imports = ["` + dropIn + `"]`
	for _, c := range []struct {
		name  string
		major int
		files files
		o     Options
		want  map[string][]string // texts in the files that change
	}{
		{"1.x, no file", 1, files{}, Options{Runtimes: runc}, map[string][]string{
			root: {
				"version = 2\n", "runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n", "SystemdCgroup = true",
				block2,
			},
		}},
		{
			"1.x, runtimes are named", 1,
			files{root: "version = 2\n" + strings.Replace(block2, ".coco", ".nvidia", 1) + "\n"},
			Options{Runtimes: runc},
			map[string][]string{root: {"runtimes.nvidia]\n# coco node: begin\n" + block2}},
		},
		{"1.x, version 1", 1, files{root: "oom_score = 1\n"}, Options{}, map[string][]string{
			root: {"[plugins.cri.containerd.runtimes.coco]", `[plugins.cri.containerd.runtimes."coco.x".options]`},
		}},
		{"1.x, the CRI section is in an import", 1, files{
			root:        "version = 2\nimports = [\"/i/*.toml\"]\n",
			"/i/a.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n",
			"/i/b.toml": "version = 2\n",
		}, Options{}, map[string][]string{"/i/a.toml": {block2}}},
		{"2.x, no file", 2, files{}, Options{}, map[string][]string{
			root: {"version = 3\n" + importLine}, dropIn: {dropIn3},
		}},
		{"2.x, version 2", 2, files{root: "# one\nversion = 2\n\n[plugins]\n"}, Options{}, map[string][]string{
			root:   {"# one\nversion = 2\n# coco node: begin\n" + importLine + "\n# coco node: end\n\n[plugins]\n"},
			dropIn: {dropIn2},
		}},
		{"2.x, no version", 2, files{root: "disabled_plugins = [\"cri\"]\n"}, Options{EnableCRI: true}, map[string][]string{
			root: {importLine, "instead of: disabled_plugins = [\"cri\"]\ndisabled_plugins = []\n"}, dropIn: {dropIn2},
		}},
		{
			"2.x, an import names the directory", 2,
			files{root: "version = 3\nimports = [\"conf.d/*.toml\"]\n"},
			Options{},
			map[string][]string{dropIn: {dropIn3}},
		},
		{
			"2.x, an import names another directory", 2,
			files{root: "version = 3\nimports = [\"/i/*.toml\"]\n"},
			Options{},
			map[string][]string{"/i/coco.toml": {dropIn3}},
		},
		{
			"2.x, an import names a file", 2,
			files{root: "version = 3\nimports = [\"/i/a.toml\"]\n"},
			Options{},
			map[string][]string{root: {`imports = ["` + dropIn + `", "/i/a.toml"]`}, dropIn: {dropIn3}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			edits, err := Plan(site(c.major), c.files, one, c.o)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range edits {
				for _, want := range c.want[e.Path] {
					if !strings.Contains(string(e.Text), want) {
						t.Errorf("%s is\n%s\nwant in it\n%s", e.Path, e.Text, want)
					}
				}
			}
			if len(edits) != len(c.want) {
				t.Errorf("edits %v, want %d files changed", edits, len(c.want))
			}
			after := c.files.with(edits)
			if again, err := Plan(site(c.major), after, one, c.o); err != nil || len(again) > 0 {
				t.Errorf("a second plan is %v, %v", again, err)
			}
			off, err := Plan(site(c.major), after, nil, c.o)
			if d := cmp.Diff(c.files, after.with(off)); err != nil || d != "" {
				t.Errorf("without handlers: %v\n%s", err, d)
			}
		})
	}
}

func TestPlansThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		major int
		files files
		want  string
	}{
		{"no TOML", 2, files{root: "a = \n"}, "is no TOML"},
		{"somebody else's drop-in", 2, files{root: "version = 2\n", dropIn: "version = 2\n"}, "not written by coco node"},
		{"imports in a form of its own", 2, files{root: "version = 3\n\"imports\" = [\"/i/a.toml\"]\n"}, "by hand"},
		{"version 3 on 1.x", 1, files{root: "version = 3\n"}, "does not read"},
		{"a runtime of the same name", 1, files{root: "version = 2\n" + block2 + "\n"}, "cannot be changed"},
	} {
		if _, err := Plan(site(c.major), c.files, one, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
}

func TestCompareFindsWhatIsLost(t *testing.T) {
	dump := func(text string) Dump {
		d, err := ParseDump([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	section := "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes."
	before := dump("imports = []\noom_score = 1\n" + section + "nvidia]\n a = 1\n")
	ours := section + "coco]\n runtime_type = \"io.containerd.coco.v2\"\n runtime_path = \"/o/shim\"\n"
	differences, missing := Compare(before, dump("imports = [\"x\"]\noom_score = 2\n"+ours), one)
	want := []string{
		"- oom_score = 1", "+ oom_score = 2", `- plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.a = 1`,
	}
	if d := cmp.Diff(want, differences); d != "" || !slices.Equal(missing, []string{"coco.x"}) {
		t.Errorf("missing %v, differences:\n%s", missing, d)
	}
	differences, missing = Compare(before, dump("oom_score = 1\n"+section+"nvidia]\n a = 1\n"+ours), one[:1])
	if len(differences)+len(missing) > 0 {
		t.Errorf("Compare = %v, %v, want nothing", differences, missing)
	}
}
