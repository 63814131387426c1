// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/host"
)

// run runs a command of the group and returns what it prints on both outputs.
func run(args ...string) (out, notes string, err error) {
	var o, n bytes.Buffer
	cmd := Command()
	cmd.SetOut(&o)
	cmd.SetErr(&n)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err = cmd.Execute()
	return o.String(), n.String(), err
}

// fixture is a configuration with templates, of which the last cannot be used.
func fixture(t *testing.T) (config string, keys []string) {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	config = filepath.Join(t.TempDir(), "config.toml")
	text := fmt.Sprintf("[runtime]\nstate_dir = %q\ntemplate = \"private\"\n", state)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configs.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	s := host.Templates(cfg)
	for _, c := range "ab" {
		k := strings.Repeat(string(c), 64)
		_, err := s.Make(t.Context(), k, "of "+string(c), func(_ context.Context, f *os.File) error {
			_, err := f.WriteString("state")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, keys[1], "template.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config, keys
}

func TestTemplatesAreListedAndRemoved(t *testing.T) {
	config, keys := fixture(t)
	out, _, err := run("ls", "--config", config)
	if err != nil || !strings.Contains(out, keys[0][:12]) || !strings.Contains(out, "of a") ||
		!strings.Contains(out, "unusable") {
		t.Errorf("ls: %v\n%s", err, out)
	}
	out, _, err = run("ls", "--config", config, "--json")
	var list []entry
	if jerr := json.Unmarshal([]byte(out), &list); err != nil || jerr != nil || len(list) != 2 {
		t.Errorf("ls --json: %v, %v\n%s", err, jerr, out)
	}
	for want, args := range map[string][]string{
		"name templates":    {"rm", "--config", config},
		"or remove --all":   {"rm", "--config", config, "--all", "a"},
		"0 templates begin": {"rm", "--config", config, "c"},
		"does not exist":    {"ls", "--config", config + ".absent"},
	} {
		if _, _, err := run(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, not %q", args, err, want)
		}
	}
	if _, notes, err := run("rm", "--config", config, "aa"); err != nil || !strings.Contains(notes, keys[0][:12]) {
		t.Errorf("rm: %v, %s", err, notes)
	}
	if _, _, err := run("rm", "--config", config, "--all"); err != nil {
		t.Error(err)
	}
	if out, _, err := run("ls", "--config", config, "--json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("nothing is left: %v, %s", err, out)
	}
}

func TestTheMakerRefusesWhatNoShimSays(t *testing.T) {
	cmd := Command()
	cmd.SetIn(strings.NewReader("{"))
	cmd.SetArgs([]string{"background"})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "read what to make") {
		t.Errorf("half an order: %v", err)
	}
}

func TestNothingIsBuiltWhereTemplatesCannotBe(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, []byte("[hypervisor]\ntype = \"clh\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run("build", "--config", config); err == nil || !strings.Contains(err.Error(), "made with QEMU") {
		t.Errorf("Cloud Hypervisor: %v", err)
	}
}
