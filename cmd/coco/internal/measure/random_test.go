// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/measurement/bzimage/bzimagetest"
	"github.com/coco-shim/coco/measurement/igvm"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp"
)

// generator makes configurations and pods. Most are fine, some are refused.
type generator struct {
	t   *testing.T
	r   *rand.Rand
	dir string
	// unfit says that the firmware is one with which the driver refuses to launch. A rehearsal has no driver.
	unfit bool
}

// one is true once in n times.
func (g *generator) one(n int) bool { return g.r.IntN(n) == 0 }

func (g *generator) between(lo, hi int) int { return lo + g.r.IntN(hi-lo+1) }

func pick[T any](g *generator, of ...T) T { return of[g.r.IntN(len(of))] }

func (g *generator) file(name string, content []byte) string {
	g.t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil { // VMMs have users of their own
		g.t.Fatal(err)
	}
	return path
}

const podMaySet = "enable_annotations = " +
	"[\"hypervisor.default_vcpus\", \"hypervisor.default_memory_mib\", \"hypervisor.kernel_params\"]\n"

// next makes one of each.
func (g *generator) next() agreeCase {
	platform, vmm := pick(g, "snp", "snp", "tdx"), "qemu"
	if platform == "snp" && g.one(3) {
		vmm = "clh"
	}
	program := g.file("vmm", []byte("#!/bin/false\n"))
	if err := os.Chmod(program, 0o755); err != nil {
		g.t.Fatal(err)
	}
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s = %#v\n", key, value) }
	b.WriteString("[hypervisor]\n")
	line("type", vmm)
	line("platform", platform)
	line("path", program)
	line("guest_dir", g.guest(platform))
	line("firmware", g.file("fw", g.firmware(vmm)))
	line("max_vcpus", g.between(8, 64))
	line("default_vcpus", g.between(1, 8))
	line("default_memory_mib", g.between(128, 1024))
	line("overhead_memory_mib", g.between(0, 300))
	line("kernel_params", fmt.Sprint("x=", g.r.IntN(1000)))
	if g.one(3) {
		line("max_memory_mib", 2048)
	}
	if vmm == "qemu" {
		line("block_bus", pick(g, "virtio-scsi", "virtio-blk"))
		line("hotplug_ports", g.between(1, 8))
	}
	if platform == "snp" && vmm == "qemu" {
		line("cpu_model", pick(g, "EPYC-v4", "EPYC-Rome", "EPYC-Milan-v2", "EPYC-Genoa"))
		line("snp_id_block", pick(g, "anonymous", "anonymous", "author", "none"))
		fmt.Fprintf(&b, "snp_guest_policy = %#x\n", 0x20000|g.r.IntN(2)<<16|g.r.IntN(256)<<8)
	}
	if g.one(3) {
		line("initdata", g.file("initdata.toml", g.initdata(platform)))
	}
	b.WriteString("[runtime]\n" + podMaySet)
	c := agreeCase{dir: g.dir, config: g.file("tee.toml", []byte(b.String()))}
	if g.one(2) && !g.unfit {
		c.plain = g.file("plain.toml", g.plain(program, c.config))
	}
	text, params := g.manifest(platform)
	c.manifest, c.digested = g.file("pod.yaml", text), params && platform == "snp"
	return c
}

// plain is a configuration of the plain platform that rehearses another.
func (g *generator) plain(program, rehearse string) []byte {
	files := g.file("vmlinux", []byte("a kernel that boots without firmware"))
	return fmt.Appendf(nil, "[hypervisor]\npath = %q\nkernel = %q\ninitrd = %q\n[runtime]\nrehearse = %q\n"+podMaySet,
		program, files, files, rehearse)
}

// guest makes a guest image. Some kernels leave nothing in RTMR2.
func (g *generator) guest(platform string) string {
	release := fmt.Sprintf("6.12.%d", g.r.IntN(50))
	if platform == "tdx" && g.one(8) {
		release = "6.1.0"
	}
	g.file(contract.PartRego+contract.PartSuffix, make([]byte, 4096)) // pods with initdata ask for it
	g.file("vmlinuz", bzimagetest.Kernel(release, fmt.Sprint(g.r.Uint64())))
	g.file("initrd.img", bytes.Repeat([]byte{byte(g.r.IntN(256))}, g.between(1, 5000)))
	if !g.one(4) {
		g.file("manifest.json", fmt.Appendf(nil, `{"cmdline": "quiet y=%d"}`, g.r.IntN(1000)))
	}
	return g.dir
}

// firmware is for SNP and TDX, or an IGVM file.
func (g *generator) firmware(vmm string) []byte {
	if vmm == "clh" {
		w := igvm.Writer{Policy: 0x30000} // the configuration's
		if g.unfit = g.one(8); g.unfit {
			w.Policy = 0x20000
		}
		w.Data(0xfffff000, fmt.Append(nil, "firmware", g.r.Uint64()))
		w.Context(0, igvm.KVMVMSAGPA, snp.BootContext(0x800f12, 1))
		raw, err := w.Bytes()
		if err != nil {
			g.t.Fatal(err)
		}
		return raw
	}
	const size = 64 << 10
	l := ovmftest.Layout{
		Size: size, Seed: g.r.Uint64(), EIP: 0x80b004, HashBase: 0x810c00,
		SEV: ovmftest.Sections(), TDX: ovmftest.TDXSections(size),
	}
	return ovmftest.Build(l)
}

// initdata is a document; some have a digest that does not fit into the platform's report.
func (g *generator) initdata(platform string) []byte {
	algorithm := map[string]string{"snp": "sha256", "tdx": "sha384"}[platform]
	if g.one(10) {
		algorithm = "sha512"
	}
	return fmt.Appendf(nil, "version = \"0.1.0\"\nalgorithm = %q\n[data]\n\"policy.rego\" = \"# %d\"\n",
		algorithm, g.r.Uint64())
}

// manifest is a workload. params says that it changes the kernel's command line.
func (g *generator) manifest(platform string) (text []byte, params bool) {
	var annotations []string
	note := func(key string, value any) {
		annotations = append(annotations, fmt.Sprintf("%s: %q", key, fmt.Sprint(value)))
	}
	prefix := pick(g, contract.ConfigPrefix, contract.KataConfigPrefix)
	if g.one(4) {
		note(prefix+"hypervisor.default_vcpus", g.between(1, 8))
	}
	if g.one(4) {
		note(contract.ConfigPrefix+"hypervisor.default_memory_mib", g.between(128, 2048))
	}
	if params = g.one(6); params {
		note(prefix+"hypervisor.kernel_params", "z=1")
	}
	if g.one(3) {
		note(contract.KataInitdata, g.zipped(g.initdata(platform)))
	}
	pod := fmt.Sprintf("metadata: {name: p, annotations: {%s}}, "+
		"spec: {runtimeClassName: coco, containers: [%s], initContainers: [%s]}",
		strings.Join(annotations, ", "), g.containers(g.between(1, 3)), g.containers(g.r.IntN(3)))
	switch g.r.IntN(3) {
	case 0:
		pod = "kind: Deployment, apiVersion: apps/v1, metadata: {name: d}, spec: {template: {" + pod + "}}"
	case 1:
		pod = "kind: Job, apiVersion: batch/v1, metadata: {name: j}, spec: {template: {" + pod + "}}"
	default:
		pod = "kind: Pod, apiVersion: v1, " + pod
	}
	return []byte("{" + pod + "}"), params
}

func (g *generator) zipped(text []byte) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.Copy(z, bytes.NewReader(text)); err != nil {
		g.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		g.t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// containers have limits, requests or neither.
func (g *generator) containers(n int) string {
	out := make([]string, n)
	for i := range out {
		var quantities []string
		if g.one(2) {
			quantities = append(quantities, fmt.Sprintf("cpu: %dm", g.between(1, 12000)))
		}
		if g.one(2) {
			quantities = append(quantities, fmt.Sprintf("memory: %dKi", g.between(1, 2<<20)))
		}
		out[i] = fmt.Sprintf("{name: c%d, resources: {%s: {%s}}}",
			i, pick(g, "limits", "requests"), strings.Join(quantities, ", "))
	}
	return strings.Join(out, ", ")
}
