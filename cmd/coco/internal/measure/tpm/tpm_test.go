// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz/lzma"

	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
)

// files makes a boot chain, with a firmware that has nothing but a compressed volume, and a configuration of it.
func files(t *testing.T) map[string]string {
	t.Helper()
	var packed bytes.Buffer
	w, err := lzma.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("\x0c\x00\x00\x17drivers!")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	head := []byte("\x98\x58\x4e\xee\x14\x39\x59\x42\x9d\x6e\xdc\x7b\xd7\x94\x03\xcf\x18\x00\x01\x00")
	n := len(head) + 4 + packed.Len()
	fw := append([]byte{byte(n), byte(n >> 8), 0, 2}, append(head, packed.Bytes()...)...)
	dir := t.TempDir()
	out := map[string]string{}
	for name, content := range map[string][]byte{
		"firmware": fw, "kernel": bzimagetest.Kernel("6.12.118", "a"), "initrd": []byte("initrd"),
		"initdata": []byte("version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n"),
		"sha384":   []byte("version = '0.1.0'\nalgorithm = 'sha384'\n[data]\n"),
	} {
		out[name] = filepath.Join(dir, name)
		if err := os.WriteFile(out[name], content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := "[hypervisor]\nplatform = %q\nfirmware = %q\nkernel = %q\ninitrd = %q\nguest_dir = %q\n" +
		"kernel_params = \"x\"\n"
	for _, platform := range []string{"vtpm", "none"} {
		out[platform] = filepath.Join(dir, platform+".toml")
		text := fmt.Sprintf(config, platform, out["firmware"], out["kernel"], out["initrd"], dir)
		if err := os.WriteFile(out[platform], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := Command()
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.Execute()
	return out.String(), err
}

func TestPCRsAreLines(t *testing.T) {
	f := files(t)
	boot := []string{"--firmware", f["firmware"], "--kernel", f["kernel"], "--initrd", f["initrd"], "--append", "a"}
	small, err := run(t, append(boot, "--memory", "640M")...)
	if err != nil || strings.Count(small, "\n") != 14 || !strings.HasPrefix(small, "1=") {
		t.Fatalf("%v:\n%s", err, small)
	}
	for name, more := range map[string][]string{
		"4": {"--memory", "1G"}, "8": {"--memory", "640M", "--initdata", f["initdata"]},
		"9": {"--memory", "640M", "--append", "b"}, "0": {"--memory", "640M", "--pei", strings.Repeat("ab", 32)},
	} {
		other, err := run(t, append(boot, more...)...)
		if err != nil {
			t.Errorf("%v: %v", more, err)
		}
		var differ []string
		for line := range strings.Lines(other) {
			if !strings.Contains(small, line) {
				number, _, _ := strings.Cut(line, "=")
				differ = append(differ, number)
			}
		}
		if len(differ) != 1 || differ[0] != name {
			t.Errorf("%v: PCRs %v differ, want %s", more, differ, name)
		}
	}
	for want, args := range map[string][]string{
		"give --config, or":        {"--memory", "1G"},
		"give --memory":            boot,
		"--config goes without":    append(boot, "--config", f["vtpm"]),
		"its VMs have no TPM":      {"--config", f["none"]},
		"takes sha256":             {"--config", f["vtpm"], "--initdata", f["sha384"]},
		"is no SHA-256 in hexa":    {"--config", f["vtpm"], "--pei", "00"},
		"the kernel takes 2047":    append(boot, "--memory", "1G", "--append", strings.Repeat("x", 2048)),
		"no compressed volumes":    append(boot, "--memory", "1G", "--firmware", f["kernel"]),
		"--reference-values \"x\"": {"--config", f["vtpm"], "--reference-values", "x"},
	} {
		if out, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%v: %v, want %q\n%s", args, err, want, out)
		}
	}
}

func TestAConfigurationHasAllButTheInitdata(t *testing.T) {
	f := files(t)
	text, err := run(t, "--config", f["vtpm"], "--reference-values", "broker")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Type   string
		Values []struct {
			Platform  string
			Memory    uint64
			Registers map[string]string
		}
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Type != "coco-reference-values" || len(doc.Values) != 1 || doc.Values[0].Platform != "vtpm" ||
		doc.Values[0].Memory != 640<<20 || len(doc.Values[0].Registers["pcr09"]) != 64 {
		t.Errorf("reference values: %s", text)
	}
}
