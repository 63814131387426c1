// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/image/layer"
)

func TestCacheListsAndPrunes(t *testing.T) {
	dir := t.TempDir()
	cache, config := filepath.Join(dir, "layers"), filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[runtime]\nlayer_cache = %q\n", cache), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		t.Helper()
		cmd := newCacheCmd()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&bytes.Buffer{})
		cmd.SetArgs(append(args, "--config", config))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.Execute()
		return out.String(), err
	}
	if _, err := run("list"); err == nil || !strings.Contains(err.Error(), cache) {
		t.Errorf("without a cache: %v", err)
	}
	c, err := layer.New(cache)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "snapshot")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := c.Open(t.Context(), layer.Source{Kind: layer.Dir, Path: source})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run("list"); err != nil || !strings.Contains(out, l.Hex()[:12]) || !strings.Contains(out, source) || !strings.Contains(out, "1 layers in the cache") {
		t.Errorf("list: %q, %v", out, err)
	}
	if out, err := run("prune", "--all"); err != nil || !strings.Contains(out, "0 layers removed") { // it is in use
		t.Errorf("prune --all: %q, %v", out, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := run("prune"); err != nil || !strings.Contains(out, "0 layers removed") { // it is needed
		t.Errorf("prune: %q, %v", out, err)
	}
	for i, args := range [][]string{{"prune", "--json", "--all", "--dry-run"}, {"prune", "--json", "--all"}, {"prune", "--json", "--all"}} {
		out, err := run(args...)
		var got struct {
			Layers []layer.Entry
			Bytes  int64
		}
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got.Layers) != []int{1, 1, 0}[i] || got.Bytes > 0 != (i < 2) {
			t.Errorf("%v: %s, %v", args, out, err)
		}
	}
}
