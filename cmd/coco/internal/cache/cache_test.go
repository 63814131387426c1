// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cache

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
		cmd := Command()
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
	out, err := run("list")
	for _, want := range []string{l.Hex()[:12], source, "1 layers in the cache"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("list: %q, %v, want %q in it", out, err, want)
		}
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
	for i, args := range []string{"--all --dry-run", "--all", "--all"} {
		out, err := run(append([]string{"prune", "--json"}, strings.Fields(args)...)...)
		var got struct {
			Layers []layer.Entry
			Bytes  int64
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &got)
		}
		if err != nil || len(got.Layers) != []int{1, 1, 0}[i] || got.Bytes > 0 != (i < 2) {
			t.Errorf("prune %s: %s, %v", args, out, err)
		}
	}
}
