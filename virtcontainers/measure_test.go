// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
	"github.com/coco-shim/coco/measurement/kernelhashes"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/plan/launch"
	"github.com/coco-shim/coco/virtcontainers/boot"
)

// snpConfig makes a configuration for SNP of one for the plain platform.
func (w *world) snpConfig(cfg configs.Config) configs.Config {
	w.t.Helper()
	path := filepath.Join(w.dir, "fw.fd")
	fw := ovmftest.Build(ovmftest.Layout{
		Size: 64 << 10, Seed: 1, EIP: 0x80b004, HashBase: 0x810c00,
		SEV: ovmftest.Sections(), TDX: ovmftest.TDXSections(64 << 10),
	})
	if err := os.WriteFile(path, fw, 0o644); err != nil {
		w.t.Fatal(err)
	}
	cfg.Hypervisor.Platform, cfg.Hypervisor.Firmware, cfg.Hypervisor.CPUModel = "snp", path, "EPYC-v4"
	cfg.Hypervisor.Kernel = filepath.Join(w.dir, "vmlinuz")
	if err := os.WriteFile(cfg.Hypervisor.Kernel, bzimagetest.Kernel("6.12.1", ""), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return cfg
}

// snpDigest computes what a VM of snpConfig must be reported as, without the code under test.
func (w *world) snpDigest(cfg configs.Config, vcpus int) string {
	w.t.Helper()
	read := func(p string) []byte {
		b, err := os.ReadFile(p)
		if err != nil {
			w.t.Fatal(err)
		}
		return b
	}
	initrd := sha256.Sum256(read(cfg.Hypervisor.Initrd))
	boot, err := cfg.Hypervisor.Boot()
	if err != nil {
		w.t.Fatal(err)
	}
	k := kernelhashes.New(sha256.Sum256(read(cfg.Hypervisor.Kernel)), &initrd, boot.Cmdline)
	d, err := snp.Measure(snp.Description{
		VMM: snp.QEMU, Firmware: read(cfg.Hypervisor.Firmware), Kernel: &k, VCPUs: vcpus,
		Signature: 0x800f12, Features: 1,
	}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return d.String()
}

func published(t *testing.T, o Options) launch.Expected {
	t.Helper()
	dir := filepath.Join(o.Config.Runtime.StateDir, boot.StateDirName(o.Namespace, o.ID))
	text, err := os.ReadFile(filepath.Join(dir, boot.LaunchFile))
	if err != nil {
		t.Fatal(err)
	}
	var l launch.Expected
	if err := json.Unmarshal(text, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

const initdataText = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"note.txt\" = \"measured\"\n"

func initdataAnnotation(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

func TestAnSNPPodIsLaunchedWithTheDigestThatIsPublished(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	o.Config = w.snpConfig(o.Config)
	o.Config.Hypervisor.DefaultVCPUs = 2
	o.Initdata = initdataAnnotation(t, initdataText)
	p, _ := start(t, w, o)
	l := published(t, o)
	if want := w.snpDigest(o.Config, 2); l.Digest != want || l.Rehearsal || l.Platform != "snp" || l.VCPUs != 2 ||
		l.MemoryMiB != 640 {
		t.Errorf("published %+v, want digest %s", l, want)
	}
	if *p.Launch() != l {
		t.Errorf("Launch() = %+v, the file has %+v", p.Launch(), l)
	}
	spec := w.vm().spec
	sum := sha256.Sum256([]byte(initdataText))
	if spec.SNP.HostData != sum || l.HostData != hex.EncodeToString(sum[:]) {
		t.Errorf("HOSTDATA = %x, published %s, want %x", spec.SNP.HostData, l.HostData, sum)
	}
	keys, err := idauth.Verify(spec.SNP.IDBlock, spec.SNP.IDAuth)
	if err != nil || keys.ID.String() != l.IDKeyDigest || hex.EncodeToString(spec.SNP.IDBlock[:48]) != l.Digest {
		t.Errorf("the ID block %x does not pin %s: %v", spec.SNP.IDBlock, l.Digest, err)
	}
}

func TestTheIDBlockIsConfigurable(t *testing.T) {
	for pin, want := range map[hypervisor.SNPPin]struct{ block, author bool }{
		hypervisor.PinAnonymous: {true, false}, hypervisor.PinAuthor: {true, true}, hypervisor.PinNone: {false, false},
	} {
		t.Run(string(pin), func(t *testing.T) {
			w := newWorld(t)
			o := w.options("sleep")
			o.Config = w.snpConfig(o.Config)
			o.Config.Hypervisor.SNPIDBlock = string(pin)
			start(t, w, o)
			l, spec := published(t, o), w.vm().spec
			if l.Digest != w.snpDigest(o.Config, 1) || (len(spec.SNP.IDBlock) > 0) != want.block ||
				(l.IDKeyDigest != "") != want.block || (l.AuthorKeyDigest != "") != want.author {
				t.Errorf("published %+v, ID block of %d bytes", l, len(spec.SNP.IDBlock))
			}
			if !want.block {
				return
			}
			keys, err := idauth.Verify(spec.SNP.IDBlock, spec.SNP.IDAuth)
			if err != nil || keys.ID.String() != l.IDKeyDigest || want.author && keys.Author.String() != l.AuthorKeyDigest {
				t.Errorf("keys %+v, %v, published %+v", keys, err, l)
			}
		})
	}
}

func TestPartsOfTheImageAreAttachedToPodsThatAskForThem(t *testing.T) {
	w := newWorld(t)
	w.holdUntil("make netns", "open layers")
	o := w.options("sleep")
	o.Initdata = initdataAnnotation(t, initdataText+"\""+initdata.FileAA+"\" = \"\"\n")
	part := filepath.Join(filepath.Dir(o.Config.Hypervisor.Initrd), contract.PartTrust+contract.PartSuffix)
	if _, err := CreatePod(t.Context(), o); err == nil || !strings.Contains(err.Error(), "asks for "+contract.PartTrust) ||
		!strings.Contains(err.Error(), part) {
		t.Fatalf("an image without the part: %v", err)
	}
	w = newWorld(t)
	w.holdUntil("make netns", "open layers")
	o = w.options("sleep")
	o.Initdata = initdataAnnotation(t, initdataText+"\""+initdata.FileAA+"\" = \"\"\n")
	part = filepath.Join(filepath.Dir(o.Config.Hypervisor.Initrd), contract.PartTrust+contract.PartSuffix)
	if err := os.WriteFile(part, []byte("part"), 0o644); err != nil {
		t.Fatal(err)
	}
	var got []byte
	w.onLaunch = func(spec hypervisor.VMSpec) {
		if len(spec.Blocks) < 2 || spec.Blocks[1].ID != contract.PartTrust || !spec.Blocks[1].ReadOnly {
			t.Errorf("blocks are %+v, want %s after the initdata", spec.Blocks, contract.PartTrust)
			return
		}
		got, _ = io.ReadAll(io.NewSectionReader(spec.Blocks[1].File, 0, 1<<20))
	}
	start(t, w, o)
	if string(got) != "part" {
		t.Errorf("the disk has %q", got)
	}
}

func TestTheInitdataIsTheFirstDevice(t *testing.T) {
	w := newWorld(t)
	w.holdUntil("make netns", "open layers")
	o := w.options("sleep")
	o.Config.Hypervisor.Initdata = filepath.Join(w.dir, "initdata.toml")
	if err := os.WriteFile(o.Config.Hypervisor.Initdata, []byte(initdataText), 0o644); err != nil {
		t.Fatal(err)
	}
	var disk []byte
	w.onLaunch = func(spec hypervisor.VMSpec) {
		if len(spec.Blocks) != 4 || spec.Blocks[0].ID != "initdata" || !spec.Blocks[0].ReadOnly {
			t.Errorf("blocks are %+v, want initdata, two layers and the writable layer's disk", spec.Blocks)
			return
		}
		if _, err := spec.Blocks[0].File.WriteAt([]byte("x"), 0); err == nil {
			t.Error("the initdata can be written")
		}
		disk, _ = io.ReadAll(io.NewSectionReader(spec.Blocks[0].File, 0, 1<<20))
	}
	start(t, w, o)
	d, err := initdata.FromDisk(bytes.NewReader(disk))
	if err != nil || string(d.Text) != initdataText {
		t.Errorf("the device has %q, %v", disk, err)
	}
	if _, err := os.Stat(filepath.Join(o.Config.Runtime.StateDir, boot.StateDirName(o.Namespace, o.ID),
		boot.LaunchFile)); err == nil {
		t.Error("a launch digest is published for a VM that nothing measures")
	}
}

func TestARehearsalPublishesTheOtherPlatformsDigest(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	r := w.snpConfig(o.Config)
	r.Hypervisor.DefaultVCPUs, r.Hypervisor.MaxVCPUs = 3, 4
	o.Rehearse, o.Initdata = &r, initdataAnnotation(t, initdataText)
	start(t, w, o)
	l := published(t, o)
	if want := w.snpDigest(r, 3); l.Digest != want || !l.Rehearsal || l.VCPUs != 3 ||
		l.HostData == strings.Repeat("0", 64) {
		t.Errorf("published %+v, want a rehearsal with digest %s", l, want)
	}
	if spec := w.vm().spec; spec.TEE != hypervisor.TEENone || spec.SNP != nil || spec.CPU.Count != 1 ||
		spec.Boot.Firmware != nil {
		t.Errorf("the VM itself became %+v", spec)
	}
}

func TestATDXPodPublishesMRTD(t *testing.T) {
	w := newWorld(t)
	o := w.options("sleep")
	o.Config = w.snpConfig(o.Config)
	o.Config.Hypervisor.Platform, o.Config.Hypervisor.CPUModel = "tdx", ""
	o.Initdata = initdataAnnotation(t, strings.Replace(initdataText, "sha256", "sha384", 1))
	start(t, w, o)
	if l := published(t, o); len(l.Digest) != 96 || l.Platform != "tdx" || len(l.HostData) != 96 ||
		strings.HasSuffix(l.HostData, "00000000") || l.IDKeyDigest != "" {
		t.Errorf("published %+v", l)
	}
}

func TestWhatCannotBeMeasuredIsNotLaunched(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*world, *Options)
		want   string
	}{
		{"firmware without hash area", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			fw := ovmftest.Build(ovmftest.Layout{Size: 64 << 10, Seed: 1, EIP: 0x80b004, SEV: ovmftest.Sections()})
			if err := os.WriteFile(o.Config.Hypervisor.Firmware, fw, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "kernel-hash area"},
		{"a kernel that is none", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			if err := os.WriteFile(o.Config.Hypervisor.Kernel, []byte("\x7fELF"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "is an ELF file (vmlinux)"},
		{"an empty initramfs", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			o.Config.Hypervisor.Initrd = filepath.Join(w.dir, "nothing")
			if err := os.WriteFile(o.Config.Hypervisor.Initrd, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "nothing: is empty"},
		{"a kernel that does not extend RTMR2", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			o.Config.Hypervisor.Platform, o.Config.Hypervisor.CPUModel = "tdx", ""
			if err := os.WriteFile(o.Config.Hypervisor.Kernel, bzimagetest.Kernel("6.1.0-37-amd64", ""), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "release 6.1.0-37-amd64 measures neither command line nor initrd into RTMR2"},
		{"an unknown model", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			o.Config.Hypervisor.CPUModel = "EPYC-v99"
		}, "EPYC-v99"},
		{"an algorithm that does not fit", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			o.Initdata = initdataAnnotation(t, strings.Replace(initdataText, "sha256", "sha384", 1))
		}, "platform snp takes sha256"},
		{"an algorithm that does not fit TDX", func(w *world, o *Options) {
			o.Config = w.snpConfig(o.Config)
			o.Config.Hypervisor.Platform, o.Config.Hypervisor.CPUModel = "tdx", ""
			o.Initdata = initdataAnnotation(t, initdataText)
		}, "platform tdx takes sha384"},
		{
			"bad initdata on the plain platform", func(_ *world, o *Options) { o.Initdata = "x" },
			"annotation " + contract.KataInitdata + ": initdata is not base64",
		},
		{
			"a missing initdata file", func(_ *world, o *Options) { o.Config.Hypervisor.Initdata = "/nonexistent" },
			"hypervisor.initdata",
		},
		{"a rehearsal of the plain platform", func(_ *world, o *Options) {
			o.Config.Runtime.Rehearse = "/etc/coco/other.toml"
			o.Rehearse = &configs.Config{Hypervisor: configs.Hypervisor{Platform: "none"}}
		}, `runtime.rehearse, /etc/coco/other.toml: its hypervisor.platform is "none"`},
		{"a rehearsal that is too large", func(w *world, o *Options) {
			r := w.snpConfig(o.Config)
			r.Hypervisor.MaxMemoryMiB = 256
			o.Rehearse = &r
		}, "above hypervisor.max_memory_mib of 256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			o := w.options("sleep")
			tt.change(w, &o)
			p, err := CreatePod(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("CreatePod() = %v, %v, want an error with %q", p, err, tt.want)
			}
			if w.did("driver launch") {
				t.Error("a VM was launched")
			}
			if left := w.left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// Unmeasured inputs do not change the digest: here the pods differ in names and devices only.
func TestTheDigestDoesNotDependOnThePod(t *testing.T) {
	digests := map[string]bool{}
	for i := range 3 {
		w := newWorld(t)
		o := w.options(fmt.Sprint("sleep", i))
		o.Config = w.snpConfig(o.Config)
		o.ID, o.Namespace, o.First, w.layers = fmt.Sprint("pod", i), fmt.Sprint("ns", i), nil, i
		if i == 2 {
			o.Initdata = initdataAnnotation(t, initdataText)
		}
		p, err := CreatePod(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		digests[p.Launch().Digest] = true
		if err := p.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(digests) != 1 {
		t.Errorf("%d digests for pods that differ in nothing that is measured: %v", len(digests), digests)
	}
}
