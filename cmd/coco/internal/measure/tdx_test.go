// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/td"
	"github.com/coco-shim/coco/measurement/tdx"
	"github.com/coco-shim/coco/tests/vectors"
)

func TestMeasureTDX(t *testing.T) {
	fw := firmware(t, 1<<20)
	raw, err := input.ReadLimited(fw, input.MaxFirmware)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tdx.MRTD(raw, tdx.SinglePass, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, errs, err := measure(t, "tdx", "--firmware", fw); err != nil || out != want.String()+"\n" || errs != "" {
		t.Errorf("measure tdx = %q, %q, %v, want %s", out, errs, err, want)
	}
	two, _, err := measure(t, "tdx", "--firmware", fw, "--profile", "edk2-stable202402+qemu-8.2")
	if err != nil || two == want.String()+"\n" {
		t.Errorf("measure tdx with QEMU 8.2 = %q, %v, want the digest of two passes", two, err)
	}
	initrd := write(t, "initrd", []byte("initrd"))
	args := []string{
		"tdx", "--profile", "edk2-stable202508+qemu-11.0", "--kernel", fw, "--initrd", initrd,
		"--append", "quiet",
	}
	d := tdx.Description{
		Profile: tdx.Profile{EDK2: 202508, QEMUMajor: 11}, Cmdline: "quiet",
		Initrd: tdx.Content{Data: []byte("initrd")},
	}
	rtmr2, err := tdx.RTMR2(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := measure(t, append(args, "--firmware", fw, "--registers", "rtmr2,mrtd", "--json")...)
	var r td.Result
	if err != nil || json.Unmarshal([]byte(out), &r) != nil || !r.Values["rtmr2"].Equal(rtmr2) ||
		!r.Values["mrtd"].Equal(want) {
		t.Errorf("measure tdx --registers = %q, %v, want %s", out, err, rtmr2)
	}
	for name, args := range map[string][]string{
		"no firmware":          {"tdx"},
		"image without TDX":    {"tdx", "--firmware", initrd},
		"no profile":           {"tdx", "--firmware", fw, "--kernel", fw},
		"bad profile":          {"tdx", "--firmware", fw, "--profile", "latest"},
		"no acpi":              append(args, "--firmware", fw, "--memory", "2G"),
		"bad register":         append(args, "--firmware", fw, "--registers", "rtmr3"),
		"bad memory":           append(args, "--firmware", fw, "--memory", "2X"),
		"kernel that is no PE": append(args, "--registers", "rtmr1"),
		"bad fw-cfg":           append(args, "--firmware", fw, "--memory", "2G", "--fw-cfg", "x"),
	} {
		if out, _, err := measure(t, args...); err == nil || out != "" {
			t.Errorf("%s: measure = %q, %v, want a refusal", name, out, err)
		} else {
			t.Log(err)
		}
	}
}

func TestMeasureTDXLog(t *testing.T) {
	path := write(t, "CCEL", vectors.Read(t, vectors.Dir(t), "tdx/trustee/CCEL_data_ovmf"))
	out, errs, err := measure(t, "tdx", "log", path, "--explain")
	lines := strings.Fields(out)
	if err != nil || len(lines) != 4 || !strings.HasPrefix(lines[0], "8566f998") || !strings.Contains(errs, "BootOrder") {
		t.Errorf("measure tdx log = %q, %q, %v", out, errs, err)
	}
	if out, _, err := measure(t, "tdx", "log", write(t, "CCEL", []byte("x"))); err == nil || out != "" {
		t.Errorf("measure tdx log of rubbish = %q, %v, want a refusal", out, err)
	}
}
