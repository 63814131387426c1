// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckNamesWhatIsWrong(t *testing.T) {
	w := newWorld(t, 2, v2Text)
	n := w.node(nil)
	wrong := func() string {
		t.Helper()
		findings, err := n.Check(t.Context())
		must(t, err)
		var all []string
		for _, f := range findings {
			if f.Problem != "" {
				all = append(all, f.What+" "+f.Problem)
			}
		}
		return strings.Join(all, "\n")
	}
	if got := wrong(); !strings.Contains(got, "not installed") {
		t.Errorf("Check before the installation = %q", got)
	}
	must(t, stages(source(t, "one"), source(t, "two"))[0].run(t.Context(), n))
	if got := wrong(); got != "" {
		t.Errorf("Check after the installation = %q", got)
	}
	r, err := n.Installed()
	must(t, err)
	for _, c := range []struct {
		name  string
		spoil func() error
		want  string
	}{
		{"a file is changed", func() error {
			return os.WriteFile(filepath.Join(n.at(r.Current), Shim), []byte("x"), 0o755)
		}, "is damaged"},
		{"a file is gone", func() error { return os.Remove(filepath.Join(n.at(r.Current), Shim)) }, "is missing"},
		{"the list is changed", func() error {
			return os.WriteFile(filepath.Join(n.at(r.Current), manifestName), []byte(`{"files":[]}`), 0o644)
		}, "list of files"},
		{"a link is gone", func() error { return os.Remove(filepath.Join(w.root, r.Links[0])) }, "does not lead"},
		{"the daemon has other files", func() error {
			return os.WriteFile(w.eng.daemon(), nil, 0o600)
		}, "has not loaded coco"},
		{"a run is interrupted", func() error {
			return os.WriteFile(filepath.Join(w.root, n.Disk.Journal), []byte("{}"), 0o600)
		}, "interrupted"},
	} {
		must(t, c.spoil())
		if got := wrong(); !strings.Contains(got, c.want) {
			t.Errorf("%s: Check = %q, want %q in it", c.name, got, c.want)
		}
	}
}

// A damaged version is not taken for the one that is to be installed.
func TestADamagedVersionIsNotReused(t *testing.T) {
	w := newWorld(t, 2, v2Text)
	install := stages(source(t, "one"), source(t, "two"))[0]
	must(t, install.run(t.Context(), w.node(nil)))
	r, err := w.node(nil).Installed()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.node(nil).at(r.Current), Shim), []byte("x"), 0o755))
	if err := install.run(t.Context(), w.node(nil)); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("install = %v", err)
	}
}

func TestAliases(t *testing.T) {
	for _, c := range []struct {
		aliases map[string]string
		want    string
	}{
		{map[string]string{"kata-qemu-snp": "coco-snp"}, ""},
		{map[string]string{"Kata": "coco"}, "no name for a handler"},
		{map[string]string{"coco": "coco-snp"}, "is the name of a handler"},
		{map[string]string{"kata": "cocoa"}, "no handler"},
	} {
		w := newWorld(t, 2, "")
		_, err := w.node(nil).Install(t.Context(), Options{Source: source(t, "one"), Aliases: c.aliases})
		if c.want == "" {
			must(t, err)
			if !strings.Contains(strings.Join(w.eng.State(t.Context()).Handlers, " ")+w.eng.files(), "runtimes.kata-qemu-snp]") {
				t.Error("the alias is no handler")
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("alias %v: %v, want %q", c.aliases, err, c.want)
		}
	}
}
