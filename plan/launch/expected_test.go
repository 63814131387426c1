// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/snp"
)

func TestIGVMIsMeasuredByCloudHypervisorsRule(t *testing.T) {
	w := igvm.Writer{Policy: 0x30000}
	w.Data(0xfffff000, []byte("firmware"))
	w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0x800f12, 1))
	raw, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	spec := hypervisor.VMSpec{
		ID: "pod", TEE: hypervisor.TEESNP, CPU: hypervisor.CPU{Count: 2},
		SNP:  &hypervisor.SNP{Policy: 0x30000, HostData: [32]byte{0xab}},
		Boot: hypervisor.Boot{Cmdline: "console=ttyS0"},
	}
	chain := Chain{Firmware: raw, Kernel: sha256.Sum256([]byte("kernel")), Initrd: sha256.Sum256([]byte("initrd"))}
	measure := func() (Expected, *hypervisor.SNP, error) { return Expect(spec, chain) }
	l, s, err := measure()
	if err != nil || s != nil {
		t.Fatalf("Expect() = %v, %v, %v, want no settings of ours: ID blocks are the file's", l, s, err)
	}
	f, err := igvm.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	want, err := snp.MeasureIGVM(snp.IGVMLaunch{File: f, VCPUs: 2, Kernel: &kernelhashes.Hashes{
		Kernel: chain.Kernel, Initrd: chain.Initrd, Cmdline: kernelhashes.Cmdline("console=ttyS0"),
	}}, nil)
	if err != nil || l.Digest != want.String() || l.Policy != "0x30000" || !strings.HasPrefix(l.HostData, "ab00") ||
		l.IDKeyDigest != "" {
		t.Errorf("Expect() = %+v, %v, want digest %s", l, err, want)
	}
	seen := map[string]string{l.Digest: "as it is"}
	for name, change := range map[string]func(){
		"another kernel":       func() { chain.Kernel[0]++ },
		"another initramfs":    func() { chain.Initrd[0]++ },
		"another command line": func() { spec.Boot.Cmdline = "console=ttyS1" },
		"another vCPU":         func() { spec.CPU.Count = 3 },
	} {
		before, chainBefore := spec, chain
		change()
		l, _, err := measure()
		if other, ok := seen[l.Digest]; err != nil || ok {
			t.Errorf("%s: digest %s, %v, that of %q", name, l.Digest, err, other)
		}
		seen[l.Digest] = name
		spec, chain = before, chainBefore
	}
	spec.MemoryMiB, spec.ID, spec.SNP.HostData = 4096, "another", [32]byte{}
	if l, _, err := measure(); err != nil || l.Digest != want.String() {
		t.Errorf("memory, id and HOSTDATA change the digest: %s, %v", l.Digest, err)
	}
	chain.Firmware = raw[:len(raw)-8]
	if _, _, err := measure(); err == nil {
		t.Error("Expect() of half an IGVM file = nil")
	}
}
