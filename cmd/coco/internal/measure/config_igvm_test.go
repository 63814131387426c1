// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/snp"
)

// --config of a Cloud Hypervisor class gives what `coco measure igvm` gives for the same files.
func TestMeasureConfigOfCloudHypervisor(t *testing.T) {
	w := igvm.Writer{Policy: 0x30000}
	w.Data(0xfffff000, []byte("firmware"))
	w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0x800f12, 1))
	raw, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	firmware, kernel, initrd := write(t, "stage0.igvm", raw), write(t, "vmlinuz", bzimagetest.Kernel("6.12.1", "")),
		write(t, "initrd.img", []byte("initrd"))
	text := fmt.Sprintf("[hypervisor]\ntype = \"clh\"\nplatform = \"snp\"\nmax_vcpus = 3\nguest_dir = %q\nfirmware = "+
		"%q\nkernel = %q\ninitrd = %q\nkernel_params = \"quiet\"\n", t.TempDir(), firmware, kernel, initrd)
	config := write(t, "config.toml", []byte(text))

	got, _, err := measure(t, "--config", config, "--vcpus", "2", "--json")
	if err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := c.Hypervisor.Boot()
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := measure(t, "igvm", firmware, "--vcpus", "2", "--kernel", kernel, "--initrd", initrd,
		"--append", boot.Cmdline)
	if err != nil || !strings.Contains(got, strings.TrimSpace(want)) {
		t.Errorf("measure --config = %s, %v, want %s", got, err, want)
	}
	table, _, err := measure(t, "--config", config)
	if err != nil || strings.Count(table, "\n") != 4 || !strings.Contains(table, strings.TrimSpace(want)) {
		t.Errorf("measure --config = %q, %v, want 1, 2 and 3 vCPUs", table, err)
	}
	broken := write(t, "broken.toml", []byte(strings.Replace(text, firmware, kernel, 1)))
	if _, _, err := measure(t, "--config", broken, "--vcpus", "1"); err == nil ||
		!strings.Contains(err.Error(), "the shim would refuse firmware") {
		t.Errorf("measure --config with firmware that is no IGVM file = %v", err)
	}
}
