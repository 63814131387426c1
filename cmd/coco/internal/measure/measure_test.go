// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/sev"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/tests/vectors"
)

// measure runs the command and returns its two streams.
func measure(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	err = cmd.Execute()
	return out.String(), errs.String(), err
}

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func firmware(t testing.TB, size int) string {
	t.Helper()
	return write(t, "fw.fd", ovmftest.Build(ovmftest.Layout{
		Size: size, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00,
		SEV: ovmftest.Sections(), TDX: ovmftest.TDXSections(size),
	}))
}

func TestMeasureSNPPrintsTheExpectedDigests(t *testing.T) {
	t.Run("synthetic", func(t *testing.T) { commandCases(t, vectors.Synthetic(t), ".") })
	t.Run("published", func(t *testing.T) {
		dir := vectors.Dir(t)
		for _, folder := range []string{"virtee", "metadata-only", "dstack"} {
			commandCases(t, dir, "snp/"+folder)
		}
	})
}

func commandCases(t *testing.T, dir fs.FS, folder string) {
	t.Helper()
	file := func(name string) string {
		return write(t, filepath.Base(name), vectors.Read(t, dir, strings.TrimPrefix(folder+"/"+name, "./")))
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(vectors.Read(t, dir, strings.TrimPrefix(folder+"/cases.json", "./")), &raw); err != nil {
		t.Fatal(err)
	}
	for i, c := range vectors.Cases(t, dir, strings.TrimPrefix(folder+"/cases.json", "./")) {
		args := []string{"snp", "--mode", c.Mode, "--append", c.Append, "--vmm", c.VMM}
		add := func(on bool, flag string, value any) {
			if on {
				args = append(args, flag, fmt.Sprint(value))
			}
		}
		add(c.FirmwareHash != "", "--firmware-hash", c.FirmwareHash)
		add(c.VCPUs != 0, "--vcpus", c.VCPUs)
		add(c.Features != 0, "--features", c.Features)
		add(c.Type != "", "--cpu-model", c.Type)
		add(c.Type == "", "--vcpu-sig", c.Signature)
		if c.Firmware != "" {
			add(true, "--firmware", file(c.Firmware))
		} else {
			add(true, "--metadata", write(t, "meta.json", metadataOf(t, raw[i])))
		}
		add(c.KernelSHA256 != "", "--kernel-sha256", c.KernelSHA256)
		add(c.InitrdSHA256 != "", "--initrd-sha256", c.InitrdSHA256)
		if c.Kernel != nil {
			add(true, "--kernel", file(*c.Kernel))
		}
		if c.Initrd != nil {
			add(true, "--initrd", file(*c.Initrd))
		}
		out, errs, err := measure(t, args...)
		switch {
		case c.Expect == "error" && (err == nil || out != ""):
			t.Errorf("%s: stdout %q, error %v, want a refusal", c.Name, out, err)
		case c.Expect != "error" && (err != nil || out != c.Expect+"\n" || errs != "" && !strings.HasPrefix(errs, "note: ")):
			t.Errorf("%s: stdout %q, stderr %q, error %v, want %s", c.Name, out, errs, err, c.Expect)
		}
	}
}

// metadataOf is what of a case --metadata takes.
func metadataOf(t *testing.T, raw []byte) []byte {
	t.Helper()
	var all, known map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	known = map[string]json.RawMessage{}
	for _, k := range []string{"ovmf_sections", "ap_eip", "hash_table_gpa", "ovmf_hash"} {
		if v, ok := all[k]; ok {
			known[k] = v
		}
	}
	out, err := json.Marshal(known)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMeasureTakesHashesInsteadOfFiles(t *testing.T) {
	fw := firmware(t, 64<<10)
	kernel, initrd := bzimagetest.Kernel("6.12.1", "x"), []byte("initrd")
	ok := []string{"snp", "--firmware", fw, "--vcpus", "2", "--cpu-model", "EPYC-v4", "--append", "quiet"}
	want, errs, err := measure(t, append(ok, "--kernel", write(t, "k", kernel), "--initrd", write(t, "i", initrd))...)
	if err != nil || errs != "" {
		t.Fatal(err, errs)
	}
	k, i := fmt.Sprintf("%x", sha256.Sum256(kernel)), fmt.Sprintf("%X", sha256.Sum256(initrd))
	if out, errs, err := measure(t, append(ok, "--kernel-sha256", k, "--initrd-sha256", i)...); err != nil ||
		out != want || errs != "" {
		t.Errorf("measure with hashes = %q, %q, %v, want %q", out, errs, err, want)
	}
	for text, args := range map[string][]string{
		"not both":                    {"--kernel-sha256", k, "--kernel", fw},
		"--initrd or --initrd-sha256": {"--kernel-sha256", k, "--initrd-sha256", i, "--initrd", fw},
		"is not a SHA-256":            {"--kernel-sha256", k[2:]},
		`--initrd-sha256 "x"`:         {"--kernel-sha256", k, "--initrd-sha256", "x"},
		"--kernel-sha256 is empty":    {"--kernel-sha256", ""},
		"--initrd without --kernel":   {"--kernel-sha256", "", "--initrd-sha256", i},
		"/dev/zero is a device":       {"--kernel", "/dev/zero"},
		"the kernel takes 2047":       {"--kernel-sha256", k, "--append", strings.Repeat("x", 2048)},
		"zero byte":                   {"--kernel-sha256", k, "--append", "a\x00b"},
		"sparse has 4294967296 bytes": {"--kernel", sparse(t, 1<<32)},
	} {
		if out, _, err := measure(t, append(ok, args...)...); err == nil || !strings.Contains(err.Error(), text) ||
			out != "" {
			t.Errorf("measure %v = %q, %v, want %q", args, out, err, text)
		}
	}
	if out, _, err := measure(t, append(ok, "--kernel", fw, "--initrd", "/dev/zero")...); err == nil ||
		!strings.Contains(err.Error(), "is a device") || out != "" {
		t.Errorf("measure of an endless initrd = %q, %v", out, err)
	}
	if _, _, err := measure(t, append(ok, "--kernel-sha256", k, "--append", strings.Repeat("x", 2047))...); err != nil {
		t.Errorf("the longest command line: %v", err)
	}
}

func TestMeasureSVSM(t *testing.T) {
	fw := firmware(t, 64<<10)
	svsm := write(t, "svsm.bin", ovmftest.Build(ovmftest.Layout{
		Size: 12 << 10, SEV: ovmftest.Sections(), Extra: []ovmftest.Entry{{GUID: ovmftest.SVSMInfo, Data: make([]byte, 4)}},
	}))
	ok := []string{"snp", "--mode", "svsm", "--firmware", fw, "--svsm", svsm, "--cpu-model", "EPYC-v4", "--vcpus", "1-3"}
	out, _, err := measure(t, append(ok, "--vars-size", "8192")...)
	if err != nil || strings.Count(out, "\n") != 3 {
		t.Fatalf("measure --mode svsm = %q, %v", out, err)
	}
	if again, _, err := measure(t, append(ok, "--vars-file", write(t, "vars.fd", make([]byte, 8192)))...); err != nil ||
		again != out {
		t.Errorf("measure --mode svsm --vars-file = %q, %v, want %q", again, err, out)
	}
	for want, args := range map[string][]string{
		"wants --vars-size or --vars-file": nil,
		"not a number of pages":            {"--vars-size", "1"},
		"goes without --kernel":            {"--vars-size", "0", "--kernel", fw},
		"goes without --firmware-hash":     {"--vars-size", "0", "--firmware-hash", strings.Repeat("00", 48)},
		"known of QEMU, not of ec2":        {"--vars-size", "0", "--vmm", "ec2"},
		"want --mode svsm":                 {"--vars-size", "0", "--mode", "snp"},
	} {
		if out, _, err := measure(t, append(ok, args...)...); err == nil || !strings.Contains(err.Error(), want) ||
			out != "" {
			t.Errorf("measure %v = %q, %v, want %q", args, out, err, want)
		}
	}
}

// sparse is a file of a size that takes no room.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	path := write(t, "sparse", nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMeasureSNPNotesWhatWouldNotStart(t *testing.T) {
	fw := firmware(t, 64<<10)
	ok := []string{"snp", "--firmware", fw, "--vcpus", "2", "--cpu-model", "EPYC-v4"}
	good := write(t, "vmlinuz", bzimagetest.Kernel("6.12.1", ""))
	for want, args := range map[string][]string{
		"an ELF file (vmlinux)": {"--kernel", write(t, "vmlinux", []byte("\x7fELF"))},
		"--kernel ":             {"--kernel", write(t, "empty", nil)},
		"gzip":                  {"--kernel", write(t, "gz", []byte("\x1f\x8b\x08"))},
		"--initrd ":             {"--kernel", good, "--initrd", write(t, "initrd", nil)},
		"":                      {"--kernel", good, "--initrd", fw},
	} {
		out, errs, err := measure(t, append(ok, args...)...)
		if err != nil || len(out) != 97 || (want == "") != (errs == "") || !strings.Contains(errs, want) {
			t.Errorf("measure %v = %q, %q, %v, want a digest and a note with %q", args, out, errs, err, want)
		}
	}
	if _, errs, _ := measure(t, append(ok, "--vmm", "ec2", "--kernel", fw)...); errs != "" {
		t.Errorf("notes about another VMM: %q", errs)
	}
}

func TestMeasureTDXWithKernelsThatDoNotMeasure(t *testing.T) {
	const profile = "edk2-stable202508+qemu-11.0"
	args := func(release, registers string, more ...string) []string {
		return append([]string{
			"tdx", "--profile", profile, "--registers", registers, "--kernel",
			write(t, "k", bzimagetest.Kernel(release, "")),
		}, more...)
	}
	if _, _, err := measure(t, args("6.8.12", "rtmr1,rtmr2")...); err == nil ||
		!strings.Contains(err.Error(), "measures neither command line nor initrd into RTMR2") {
		t.Errorf("measure tdx of Linux 6.8 = %v", err)
	}
	for name, a := range map[string][]string{
		"a newer kernel":       args("6.9.0", "rtmr1,rtmr2"),
		"without rtmr2":        args("6.8.12", "rtmr1"),
		"a backport that is":   args("6.8.12", "rtmr1,rtmr2", "--kernel-backport"),
		"a backport, probably": args("5.14.0-503.el9_5.x86_64", "rtmr1,rtmr2"),
	} {
		_, errs, err := measure(t, a...)
		if warned := strings.HasPrefix(errs, "warning: "); err != nil || warned != (name == "a backport, probably") {
			t.Errorf("%s: %q, %v", name, errs, err)
		}
	}
}

func TestMeasureSNPRefuses(t *testing.T) {
	fw := firmware(t, 64<<10)
	ok := []string{"snp", "--firmware", fw, "--vcpus", "1", "--cpu-model", "EPYC-v4"}
	if out, _, err := measure(t, ok...); err != nil || len(out) != 97 {
		t.Fatalf("measure = %q, %v", out, err)
	}
	meta := write(t, "meta.json", []byte(`{"ovmf_sections":[{"gpa":4096,"size":4096,"type":1}],"ap_eip":1}`))
	withMetadata := func(section string) []string {
		doc := write(t, "section.json", []byte(`{"ovmf_sections":[`+section+`],"ap_eip":1}`))
		return []string{
			"snp", "--metadata", doc, "--firmware-hash", strings.Repeat("00", 48), "--vcpus", "1",
			"--cpu-model", "EPYC",
		}
	}
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"no firmware", []string{"snp", "--vcpus", "1", "--cpu-model", "EPYC"}},
		{"missing firmware", []string{"snp", "--firmware", "/nonexistent", "--vcpus", "1", "--cpu-model", "EPYC"}},
		{"firmware is a directory", []string{"snp", "--firmware", "/", "--vcpus", "1", "--cpu-model", "EPYC"}},
		{"no vcpus", []string{"snp", "--firmware", fw, "--cpu-model", "EPYC"}},
		{"no model", []string{"snp", "--firmware", fw, "--vcpus", "1"}},
		{"model and signature", append(ok, "--vcpu-sig", "1")},
		{"zero vcpus", append(ok, "--vcpus", "0")},
		{"word for vcpus", append(ok, "--vcpus", "two")},
		{"host model", append(ok, "--cpu-model", "host")},
		{"initrd without kernel", append(ok, "--initrd", fw)},
		{"append without kernel", append(ok, "--append", "quiet")},
		{"missing kernel", append(ok, "--kernel", "/nonexistent")},
		{"bad features", append(ok, "--features", "x")},
		{"bad vmm", append(ok, "--vmm", "xen")},
		{"bad mode", append(ok, "--mode", "tdx")},
		{"bad hash", append(ok, "--firmware-hash", "00")},
		{"firmware and metadata", append(ok, "--metadata", meta, "--firmware-hash", strings.Repeat("00", 48))},
		{"metadata without hash", []string{"snp", "--metadata", meta, "--vcpus", "1", "--cpu-model", "EPYC"}},
		{"kernel with metadata without table", []string{
			"snp", "--metadata", meta, "--firmware-hash",
			strings.Repeat("00", 48), "--vcpus", "1", "--cpu-model", "EPYC", "--kernel", fw,
		}},
		{"section without address", withMetadata(`{"size":4096,"type":1}`)},
		{"section without size", withMetadata(`{"gpa":4096,"type":1}`)},
		{"section without type", withMetadata(`{"gpa":4096,"size":4096}`)},
		{
			"metadata with an unknown key",
			[]string{
				"snp", "--metadata",
				write(t, "more.json",
					[]byte(`{"ovmf_sections":[{"gpa":4096,"size":4096,"type":1}],"ap_eip":1,"hash_tabel_gpa":4096}`)),
				"--firmware-hash", strings.Repeat("00", 48), "--vcpus", "1", "--cpu-model", "EPYC",
			},
		},
		{"metadata of a section with an unknown key", withMetadata(`{"gpa":4096,"size":4096,"type":1,"kind":"x"}`)},
		{
			"metadata with something behind",
			[]string{
				"snp", "--metadata",
				write(t, "two.json", []byte(`{"ovmf_sections":[{"gpa":4096,"size":4096,"type":1}],"ap_eip":1}{}`)),
				"--firmware-hash", strings.Repeat("00", 48), "--vcpus", "1", "--cpu-model", "EPYC",
			},
		},
		{"metadata that are a list", []string{
			"snp", "--metadata", write(t, "list.json", []byte("[]")), "--vcpus", "1",
			"--cpu-model", "EPYC",
		}},
		{"empty name of a kernel", append(ok, "--kernel", "")},
		{"empty name of an initrd", append(ok, "--kernel", fw, "--initrd", "")},
		{"empty firmware hash", append(ok, "--firmware-hash", "")},
		{"empty name of a kernel for TDX", []string{"tdx", "--firmware", fw, "--kernel", ""}},
		{"debug policy", append(ok, "--id-block", "--policy", "0xb0000")},
		{"id key without id block", append(ok, "--id-key", fw)},
		{"id key that is none", append(ok, "--id-block", "--id-key", fw)},
		{"argument", append(ok, "extra")},
		{"unknown form of reference values", append(ok, "--reference-values", "x")},
		{"unknown platform", []string{"sgx"}},
		{"diff with one file", []string{"--diff", fw}},
		{"diff of something else", []string{"--diff", fw, fw}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := measure(t, tt.args...)
			if err == nil || out != "" {
				t.Errorf("measure %v = %q, %v, want a refusal with an empty stdout", tt.args, out, err)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestMeasureSNPSeveralCountsEqualSingleOnes(t *testing.T) {
	fw := firmware(t, 64<<10)
	args := []string{"snp", "--firmware", fw, "--cpu-model", "EPYC-Milan", "--kernel", fw, "--vcpus"}
	many, _, err := measure(t, append(args, "1-3,255")...)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, n := range []string{"1", "2", "3", "255"} {
		out, _, err := measure(t, append(args, n)...)
		if err != nil {
			t.Fatal(err)
		}
		want.WriteString(out)
	}
	if diff := cmp.Diff(want.String(), many); diff != "" {
		t.Errorf("digests (-single +several):\n%s", diff)
	}
}

func TestMeasureSNPForms(t *testing.T) {
	fw := firmware(t, 64<<10)
	args := []string{"snp", "--firmware", fw, "--cpu-model", "EPYC-v4", "--vcpus", "2"}
	digest, _, err := measure(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	digest = strings.TrimSpace(digest)
	t.Run("json", func(t *testing.T) {
		out, _, err := measure(t, append(args, "--json", "--explain")...)
		var r sev.Result
		if err != nil || json.Unmarshal([]byte(out), &r) != nil || r.Measurement.String() != digest ||
			r.CPUSignature != "0x800f12" || len(r.Trace.Steps) != 16+31+2 {
			t.Errorf("measure --json = %v, %+v", err, r)
		}
	})
	t.Run("explain", func(t *testing.T) {
		out, errs, err := measure(t, append(args, "--explain")...)
		if err != nil || out != digest+"\n" || strings.Count(errs, "\n") != 49 {
			t.Errorf("measure --explain = %q, %d lines, %v", out, strings.Count(errs, "\n"), err)
		}
	})
	t.Run("rvps", func(t *testing.T) {
		out, _, err := measure(t, append(args, "--reference-values", "rvps")...)
		var m struct {
			Version, Type string
			Payload       []byte
		}
		var values map[string][]string
		if err != nil || json.Unmarshal([]byte(out), &m) != nil || json.Unmarshal(m.Payload, &values) != nil {
			t.Fatal(err, out)
		}
		if diff := cmp.Diff(map[string][]string{"snp_launch_measurement": {digest}}, values); diff != "" ||
			m.Version != "0.1.0" || m.Type != "sample" {
			t.Errorf("reference values %+v (-want +got):\n%s", m, diff)
		}
	})
	t.Run("broker", func(t *testing.T) {
		out, _, err := measure(t, append(args, "--reference-values", "broker")...)
		var m struct {
			Type   string
			Values []sev.Result
		}
		if err != nil || json.Unmarshal([]byte(out), &m) != nil || len(m.Values) != 1 ||
			m.Values[0].Measurement.String() != digest {
			t.Errorf("reference values = %v, %+v", err, m)
		}
	})
	t.Run("id block", func(t *testing.T) {
		out, _, err := measure(t, append(args, "--id-block")...)
		lines := strings.Split(out, "\n")
		if err != nil || len(lines) != 4 || lines[0] != digest {
			t.Fatalf("measure --id-block = %q, %v", out, err)
		}
		block, err1 := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "id-block="))
		auth, err2 := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[2], "id-auth="))
		if _, err := idauth.Verify(block, auth); err != nil || err1 != nil || err2 != nil {
			t.Errorf("ID block does not verify: %v, %v, %v", err, err1, err2)
		}
	})
	t.Run("ovmf-hash seeds", func(t *testing.T) {
		h, _, err := measure(t, "snp", "--mode", "ovmf-hash", "--firmware", fw)
		if err != nil {
			t.Fatal(err)
		}
		if out, _, err := measure(t, append(args, "--firmware-hash", strings.TrimSpace(h))...); err != nil ||
			out != digest+"\n" {
			t.Errorf("seeded = %q, %v, want %s", out, err, digest)
		}
	})
}

func TestMeasureDiffSaysWhatDiffers(t *testing.T) {
	fw := firmware(t, 64<<10)
	save := func(vcpus string) string {
		out, _, err := measure(t, "snp", "--firmware", fw, "--cpu-model", "EPYC-v4", "--vcpus", vcpus, "--json", "--explain")
		if err != nil {
			t.Fatal(err)
		}
		return write(t, "trace.json", []byte(out))
	}
	a, b := save("1"), save("2")
	if out, _, err := measure(t, "--diff", a, a); err != nil || out != "" {
		t.Errorf("diff of a trace with itself = %q, %v", out, err)
	}
	if out, _, err := measure(t, "--diff", a, b); err == nil || !strings.Contains(out, "only in B") ||
		!strings.Contains(out, "vcpu 1") {
		t.Errorf("diff = %q, %v", out, err)
	}
}

func BenchmarkMeasureSNP(b *testing.B) {
	fw := firmware(b, 4<<20)
	kernel, initrd := write(b, "kernel", make([]byte, 12<<20)), write(b, "initrd", make([]byte, 60<<20))
	for b.Loop() {
		if _, _, err := measure(b, "snp", "--firmware", fw, "--kernel", kernel, "--initrd", initrd, "--vcpus", "4",
			"--cpu-model", "EPYC-v4"); err != nil {
			b.Fatal(err)
		}
	}
}
