// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/metrics"
)

// servePod serves one pod with the metrics in text, whose bundle is the directory in which the test works then.
func servePod(t *testing.T, text string, pages ...metrics.Page) (config, bundle string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pod") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	bundle = filepath.Join(dir, "bundle")
	place := filepath.Join(dir, "s", "p1")
	for _, d := range []string{bundle, place} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(bundle)
	l, err := net.Listen("unix", filepath.Join(place, metricsSocket))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- metrics.Serve(ctx, l, func(context.Context) string { return text }, pages...) }()
	t.Cleanup(func() { cancel(); <-done })
	config = filepath.Join(dir, "config.toml")
	write(t, config, "[runtime]\nstate_dir = \""+filepath.Join(dir, "s")+"\"\n")
	write(t, filepath.Join(bundle, "config.json"), `{}`)
	return config, bundle
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTheShimBehindASocketIsFound(t *testing.T) {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "m"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := os.Getwd()
	got, berr := bundleOf(filepath.Join(dir, "m"))
	if err != nil || berr != nil || string(got) != here {
		t.Errorf("bundleOf = %q, %v, want this process's directory", got, berr)
	}
}

func TestChoose(t *testing.T) {
	v := view{ID: "p1", Engine: "kubernetes", Name: "a/b", Containers: []*containerView{
		{ID: "p1"}, {ID: "aa1", Name: "web"}, {ID: "ab2", Name: "db"},
	}}
	for name, want := range map[string]string{"web": "aa1", "ab": "ab2", "a": "", "": "", "p1": "", "x": ""} {
		c, err := v.choose(name)
		if (err == nil) != (want != "") || err == nil && c.ID != want {
			t.Errorf("choose(%q) = %v, %v, want %q", name, c, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "web, db") {
			t.Errorf("choose(%q) does not name the containers: %v", name, err)
		}
	}
}
