// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package check

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
	"github.com/coco-shim/coco/hypervisor/jail"
	"github.com/coco-shim/coco/hypervisor/launch"
	"github.com/coco-shim/coco/hypervisor/probe"
	"github.com/coco-shim/coco/internal/cpuid"
	"github.com/coco-shim/coco/internal/testvm"
)

func TestCheckNamesWhatIsWrongWithTheConfiguration(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, []byte("[hypervisor]\npth = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--json", "--config", config})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "config") {
		t.Errorf("coco check = %v, want that the configuration is in the way", err)
	}
	var r probe.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.Name == "config" && (f.Status != probe.No || !strings.Contains(f.Fix, "pth")) {
			t.Errorf("config = %+v, want the unknown key", f)
		}
	}
}

func TestCheckLooksForTheServerOfLiveFiles(t *testing.T) {
	for text, want := range map[string]string{
		"host_path = \"live\"\nvirtiofsd = \"/nowhere/v\"": "no program /nowhere/v; install",
		"host_path = \"writable\"":                         "",
	} {
		config := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(config, []byte("[runtime]\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := Command()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetArgs([]string{"--json", "--config", config})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.Execute(); want != "" && (err == nil || !strings.Contains(err.Error(), "virtiofsd")) {
			t.Errorf("coco check = %v, want that virtiofsd is missing", err)
		}
		var r probe.Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		fix := ""
		for _, f := range r.Findings {
			if f.Name == "virtiofsd" {
				fix = f.Fix
			}
		}
		if !strings.Contains(fix, want) || want == "" && fix != "" {
			t.Errorf("virtiofsd: %q, want %q", fix, want)
		}
	}
}

// The test program is the launcher, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Arg {
		fmt.Fprintln(os.Stderr, launch.Main())
		os.Exit(125)
	}
	os.Exit(m.Run())
}

func TestCheckTriesTheConfinementOfTheVMM(t *testing.T) {
	testvm.Need(t, testvm.Root)
	script := filepath.Join(t.TempDir(), "vmm")
	text := "#!/bin/sh\n[ $(id -u) = 1900000000 ] && [ ! -e /etc/passwd ]\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct{ confined, memory probe.Status }{
		"/bin/true":    {probe.Yes, probe.Yes},
		"/bin/false":   {probe.No, probe.Yes},
		script:         {probe.Yes, probe.No},
		"/nowhere/vmm": {probe.No, probe.No},
	} {
		cfg := configs.Default()
		cfg.Hypervisor.Path = path
		r := probe.Run(t.Context(), probe.Host{
			Root: t.TempDir(), CPUID: func(uint32, uint32) cpuid.Regs { return cpuid.Regs{} },
			QEMU:    func(context.Context, string) (probe.QEMU, error) { return probe.QEMU{}, nil },
			Version: func(context.Context, string) (string, error) { return "", nil },
		}, probe.Options{Checks: checkConfinement(t.Context(), cfg)})
		for _, f := range r.Findings {
			if f.Name == "confined" && f.Status != want.confined || f.Name == "confined.mem" && f.Status != want.memory {
				t.Errorf("%s: %+v", path, f)
			}
		}
	}
}

// Cloud Hypervisor opens disks by name, so what the file system of the layer cache can decides about its capability.
func TestCheckTellsWhetherDisksCanBeLent(t *testing.T) {
	testvm.Need(t, testvm.Root)
	lent := t.TempDir()
	if err := jail.Lends(1, lent); err != nil {
		t.Skipf("files cannot be lent here: %v", err)
	}
	for cache, want := range map[string]struct {
		detail string
		memory probe.Status
	}{
		lent:    {"without capabilities", probe.Yes},
		"/proc": {"with no capability but dac_override", probe.No},
	} {
		cfg := configs.Default()
		cfg.Hypervisor.Type, cfg.Hypervisor.Path = configs.TypeCLH, "/bin/true"
		cfg.Runtime.LayerCache, cfg.Runtime.ScratchDir = lent, cache
		for _, c := range checkConfinement(t.Context(), cfg) {
			detail, err := c.Run()
			if c.Name == "confined" && (err != nil || !strings.Contains(detail, want.detail)) {
				t.Errorf("%s: confined: %s, %v, want %q", cache, detail, err, want.detail)
			}
			if c.Name == "confined.mem" && (err == nil) != (want.memory == probe.Yes) {
				t.Errorf("%s: confined.mem: %s, %v", cache, detail, err)
			}
		}
	}
}

func TestCheckPrintsSentences(t *testing.T) {
	var out bytes.Buffer
	err := printReport(&out, probe.Report{
		Platforms: []probe.Platform{{Name: "none", Usable: true, How: "KVM"}, {Name: "snp", Missing: []string{"snp.cpu"}}},
		Findings: []probe.Finding{
			{Name: "kvm", Status: probe.Yes, Detail: "usable"},
			{Name: "snp.cpu", Status: probe.No, Detail: "none", Fix: "buy one"},
		},
	})
	want := `platform none  can run, under KVM
platform snp   cannot run: snp.cpu

yes  kvm           usable
NO   snp.cpu       none
                -> buy one
`
	if err != nil || out.String() != want {
		t.Errorf("printReport() = %v, %q, want %q", err, out.String(), want)
	}
}
