// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/sev"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
)

// guestImage writes a guest image whose manifest has a command line of its own.
func guestImage(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"vmlinuz": string(bzimagetest.Kernel("6.12.1", "")), "initrd.img": "initrd",
		"manifest.json": `{"cmdline":"quiet panic=-1"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func teeConfig(t testing.TB, platform, fw, more string) (config, guest string) {
	t.Helper()
	guest = guestImage(t)
	if platform == "snp" {
		more += "cpu_model = \"EPYC-v4\"\n"
	}
	text := fmt.Sprintf("[hypervisor]\nplatform = %q\nfirmware = %q\nguest_dir = %q\nkernel_params = \"x=1\"\n%s",
		platform, fw, guest, more)
	return write(t, "config.toml", []byte(text)), guest
}

func TestMeasureConfigSNPIsWhatTheShimLaunches(t *testing.T) {
	fw := firmware(t, 64<<10)
	config, guest := teeConfig(t, "snp", fw, "max_vcpus = 5\n")
	want, _, err := measure(t, "snp", "--firmware", fw, "--kernel", guest+"/vmlinuz", "--initrd", guest+"/initrd.img",
		"--append", "quiet panic=-1 x=1", "--cpu-model", "EPYC-v4", "--vcpus", "1-5")
	if err != nil {
		t.Fatal(err)
	}
	digests := strings.Fields(want)
	for n, d := range digests {
		if out, _, err := measure(t, "--config", config, "--vcpus", fmt.Sprint(n+1), "--memory", "2G"); err != nil ||
			out != d+"\n" {
			t.Errorf("measure --config --vcpus %d = %q, %v, want %s", n+1, out, err, d)
		}
	}
	table := "VCPUS  MEASUREMENT\n"
	for n, d := range digests {
		table += fmt.Sprintf("%d      %s\n", n+1, d)
	}
	if out, _, err := measure(t, "--config", config); err != nil || out != table {
		t.Errorf("measure --config = %q, %v, want %q", out, err, table)
	}
	var results []sev.Result
	out, _, err := measure(t, "--config", config, "--json")
	if err != nil || json.Unmarshal([]byte(out), &results) != nil || len(results) != 5 || results[4].VCPUs != 5 ||
		results[4].Measurement.String() != digests[4] {
		t.Errorf("measure --config --json = %s, %v", out, err)
	}
}

func TestMeasureConfigTDX(t *testing.T) {
	fw := firmware(t, 64<<10)
	config, guest := teeConfig(t, "tdx", fw, "")
	want, _, err := measure(t, "tdx", "--firmware", fw)
	if err != nil {
		t.Fatal(err)
	}
	if out, _, err := measure(t, "--config", config); err != nil || out != want {
		t.Errorf("measure --config = %q, %v, want %q", out, err, want)
	}
	const profile = "edk2-stable202508+qemu-11.0"
	want2, _, err := measure(t, "tdx", "--registers", "rtmr2", "--profile", profile, "--kernel", guest+"/vmlinuz",
		"--initrd", guest+"/initrd.img", "--append", "quiet panic=-1 x=1")
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := measure(t, "--config", config, "--profile", profile)
	lines := strings.SplitAfter(out, "\n")
	if err != nil || len(lines) != 4 || lines[0] != want || lines[2] != want2 {
		t.Errorf("measure --config --profile = %q, %v, want MRTD, RTMR1, RTMR2 %q", out, err, want2)
	}
	if _, _, err := measure(t, "--config", config, "--profile", "edk2-stable202411+qemu-9.2"); err == nil ||
		!strings.Contains(err.Error(), "give --memory") {
		t.Errorf("measure with an old profile = %v, want a request for --memory", err)
	}
}

func TestMeasureConfigRefuses(t *testing.T) {
	good := firmware(t, 64<<10)
	plain := write(t, "plain.toml", []byte("[hypervisor]\nplatform = \"none\"\n"))
	noArea := write(t, "noarea.fd",
		ovmftest.Build(ovmftest.Layout{Size: 64 << 10, Seed: 1, EIP: 0x80b004, SEV: ovmftest.Sections()}))
	noTDX := write(t, "notdx.fd",
		ovmftest.Build(ovmftest.Layout{Size: 64 << 10, Seed: 1, EIP: 0x80b004, SEV: ovmftest.Sections()}))
	snp := func(fw, more string) string { c, _ := teeConfig(t, "snp", fw, more); return c }
	tdx, _ := teeConfig(t, "tdx", noTDX, "")
	noKernel, guest := teeConfig(t, "snp", good, "")
	if err := os.Remove(guest + "/vmlinuz"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{
			"a plain platform",
			[]string{"--config", plain, "--vcpus", "1"},
			`hypervisor.platform is "none": such VMs have no launch digest`,
		},
		{"no such configuration", []string{"--config", "/nonexistent.toml"}, "does not exist"},
		{
			"missing firmware",
			[]string{"--config", snp("/nonexistent.fd", ""), "--vcpus", "1"},
			"firmware cannot be measured: stat /nonexistent.fd: no such file or directory; install it, or set " +
				"hypervisor.firmware",
		},
		{"missing kernel", []string{"--config", noKernel, "--vcpus", "1"}, "kernel cannot be measured"},
		{"firmware without hash area", []string{"--config", snp(noArea, ""), "--vcpus", "1"}, "kernel-hash area"},
		{"TDX without metadata", []string{"--config", tdx}, "TDX metadata"},
		{"no maximum to list", []string{"--config", snp(good, "")}, "max_vcpus is 0"},
		{
			"above the maximum",
			[]string{"--config", snp(good, "max_vcpus = 2\n"), "--vcpus", "3"},
			"no pod gets more than hypervisor.max_vcpus, which is 2",
		},
		{"no vCPU", []string{"--config", snp(good, ""), "--vcpus", "0"}, "--vcpus 0"},
		{"odd memory", []string{"--config", snp(good, ""), "--vcpus", "1", "--memory", "1000"}, "whole MiB"},
		{
			"too much memory",
			[]string{"--config", snp(good, "max_memory_mib = 1024\n"), "--vcpus", "1", "--memory", "2G"},
			"max_memory_mib, which is 1024",
		},
		{
			"a profile for SNP",
			[]string{"--config", snp(good, ""), "--vcpus", "1", "--profile", "edk2-stable202508+qemu-11.0"},
			"--profile is for TDX",
		},
		{"too many vCPUs", []string{"--config", snp(good, ""), "--vcpus", "5000"}, "between 1 and 4096"},
		{"vCPUs without a configuration", []string{"--vcpus", "1"}, "want --config"},
		{"a subcommand after it", []string{"--config", plain, "zzz"}, "goes without"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := measure(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
				t.Errorf("measure %v = %q, %v, want an error with %q", tt.args, out, err, tt.want)
			}
		})
	}
}

func TestMeasureConfigRefusesWhatTheVMMWould(t *testing.T) {
	for _, tt := range []struct {
		name, platform string
		change         func(guest string) error
		args           []string
		want           string
	}{
		{"vmlinux", "snp", kernelOf("\x7fELF"), nil, "is an ELF file (vmlinux)"},
		{"no kernel", "snp", kernelOf(""), nil, "vmlinuz: is empty"},
		{"gzip", "tdx", kernelOf("\x1f\x8b\x08"), nil, "compressed with gzip"},
		{"arm64", "snp", kernelOf("MZ" + strings.Repeat("\x00", 0x36) + "ARM\x64"), nil, "arm64"},
		{"zboot", "snp", kernelOf("MZ\x00\x00zimg"), nil, "zboot"},
		{"no EFI stub", "snp", kernelOf("\x00" + string(bzimagetest.Kernel("6.12", "")[1:])), nil, "no EFI stub"},
		{
			"an empty initrd", "snp", func(guest string) error { return os.Truncate(guest+"/initrd.img", 0) }, nil,
			"initrd.img: is empty",
		},
		{
			"an initrd beyond memory", "snp", func(guest string) error { return os.Truncate(guest+"/initrd.img", 300<<20) },
			[]string{"--memory", "256M"},
			"more than the 268271615 that can be loaded",
		},
		{
			"a kernel before RTMR2", "tdx", kernelOf(string(bzimagetest.Kernel("6.8.12", ""))), nil,
			"measures neither command line nor initrd into RTMR2",
		},
		{"a long command line", "snp", func(guest string) error {
			return os.WriteFile(guest+"/manifest.json", []byte(`{"cmdline":"`+strings.Repeat("x", 2048)+`"}`), 0o600)
		}, nil, "the kernel takes 2047"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, guest := teeConfig(t, tt.platform, firmware(t, 64<<10), "max_vcpus = 2\n")
			if err := tt.change(guest); err != nil {
				t.Fatal(err)
			}
			pod := write(t, "pod.yaml", []byte(podManifest(class, "cpu: 1, memory: 16Mi", "")))
			for form, args := range map[string][]string{"--config": tt.args, "--pod": {"--pod", pod}} {
				out, _, err := measure(t, append([]string{"--config", config}, args...)...)
				if err == nil || !strings.Contains(err.Error(), tt.want) && form == "--config" || out != "" {
					t.Errorf("measure %s = %q, %v, want an error with %q", form, out, err, tt.want)
				}
			}
		})
	}
}

// kernelOf replaces the kernel of a guest image.
func kernelOf(content string) func(string) error {
	return func(guest string) error { return os.WriteFile(guest+"/vmlinuz", []byte(content), 0o600) }
}
