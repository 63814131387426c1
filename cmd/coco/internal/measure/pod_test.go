// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testvm"
	"github.com/coco-shim/coco/measurement/ovmf/ovmftest"
	"github.com/coco-shim/coco/measurement/snp/idauth"
	"github.com/coco-shim/coco/tests/vectors"
)

func podManifest(class, resources, annotations string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {%s}}\nspec: {%scontainers: [{name: "+
		"a, resources: {limits: {%s}}}]}\n", annotations, class, resources)
}

const class = "runtimeClassName: coco-snp, "

func TestMeasurePodIsTheConfigurationsDigestForItsSize(t *testing.T) {
	config, _ := teeConfig(t, "snp", firmware(t, 64<<10), "max_vcpus = 8\n")
	for cpu, vcpus := range map[string]int{"500m": 1, "2": 2, "7": 8, "2001m": 3, "5": 6, "99": 8} {
		want, _, err := measure(t, "--config", config, "--vcpus", fmt.Sprint(vcpus))
		if err != nil {
			t.Fatal(err)
		}
		pod := write(t, "pod.yaml", []byte(podManifest(class, "cpu: "+cpu, "")))
		if out, _, err := measure(t, "--config", config, "--pod", pod, "--runtime-class", "coco-snp"); err != nil ||
			out != want {
			t.Errorf("measure --pod with cpu %s = %q, %v, want %q", cpu, out, err, want)
		}
	}
}

func TestMeasurePodForms(t *testing.T) {
	config, _ := teeConfig(t, "snp", firmware(t, 64<<10), "max_vcpus = 8\n")
	two := podManifest(class, "cpu: 2, memory: 1Gi", "") + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: " +
		"{name: d, namespace: shop}\nspec: {template: {spec: {" + class + "containers: [{name: a}]}}}\n"
	manifest := write(t, "two.yaml", []byte(two))
	table, _, err := measure(t, "--config", config, "--pod", manifest)
	lines := strings.Split(table, "\n")
	if err != nil || len(lines) != 4 || !strings.HasPrefix(lines[0], "WORKLOAD") || !strings.HasPrefix(lines[1],
		"Pod/p") || !strings.Contains(lines[2], "shop/Deployment/d") || !strings.Contains(lines[1], "1152 MiB") {
		t.Errorf("measure --pod = %q, %v, want a table of two workloads", table, err)
	}
	var results []podResult
	out, _, err := measure(t, "--config", config, "--pod", manifest, "--json")
	if err != nil || json.Unmarshal([]byte(out), &results) != nil || len(results) != 2 || results[0].VCPUs != 2 ||
		results[0].MemoryMiB != 1152 || results[1].Kind != "Deployment" || !strings.Contains(table, results[1].Digest) {
		t.Errorf("measure --pod --json = %s, %v", out, err)
	}
	out, _, err = measure(t, "--config", config, "--pod", manifest, "--reference-values", "rvps")
	var message struct{ Payload []byte }
	if err != nil || json.Unmarshal([]byte(out), &message) != nil || !strings.Contains(string(message.Payload),
		results[0].Digest) || !strings.Contains(string(message.Payload), results[1].Digest) {
		t.Errorf("measure --pod --reference-values rvps = %s, %v", out, err)
	}
	if out, _, err = measure(t, "--config", config, "--pod", manifest, "--reference-values", "broker"); err != nil ||
		!strings.Contains(out, `"name": "d"`) {
		t.Errorf("measure --pod --reference-values broker = %s, %v", out, err)
	}
	out, _, err = measure(t, "--config", config, "--pod", write(t, "one.yaml", []byte(podManifest(class, "cpu: 2", ""))),
		"--id-block")
	lines = strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || len(lines) != 3 {
		t.Fatalf("measure --pod --id-block = %q, %v", out, err)
	}
	block, err1 := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "id-block="))
	auth, err2 := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[2], "id-auth="))
	if _, err := idauth.Verify(block, auth); err != nil || err1 != nil || err2 != nil ||
		fmt.Sprintf("%x", block[:48]) != lines[0] {
		t.Errorf("the ID block does not pin the digest: %v, %v, %v", err, err1, err2)
	}
}

func TestMeasurePodNotes(t *testing.T) {
	config, _ := teeConfig(t, "snp", firmware(t, 64<<10), "max_vcpus = 8\n")
	want, _, err := measure(t, "--config", config, "--vcpus", "2")
	if err != nil {
		t.Fatal(err)
	}
	ours := podManifest(class, "cpu: 2", "")
	for _, tt := range []struct{ name, more, note string }{
		{
			"another class", podManifest("runtimeClassName: kata, ", "cpu: 1", ""),
			`note: Pod p has runtimeClassName "kata", not "coco-snp": it is passed over`,
		},
		{"no class", podManifest("hostNetwork: true, ", "cpu: 1", ""), "note: Pod p has no runtimeClassName"},
		{"an unknown kind", "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\n", `kind "Rollout"`},
		{"nothing", "", ""},
	} {
		pod := write(t, "pod.yaml", []byte(ours+"---\n"+tt.more))
		out, errs, err := measure(t, "--config", config, "--pod", pod, "--runtime-class", "coco-snp")
		if err != nil || out != want || !strings.Contains(errs, tt.note) || (tt.note == "") != (errs == "") {
			t.Errorf("%s: measure = %q, %q, %v, want %q and a note with %q", tt.name, out, errs, err, want, tt.note)
		}
	}
	limits := "apiVersion: v1\nkind: LimitRange\nmetadata: {name: l}\nspec: {limits: [{type: Container, default: {cpu: " +
		"2}}]}\n---\n"
	pod := write(t, "pod.yaml", []byte(limits+podManifest(class, "memory: 16Mi", "")))
	if out, errs, err := measure(t, "--config", config, "--pod", pod); err != nil || out != want || errs != "" {
		t.Errorf("with a LimitRange: measure = %q, %q, %v, want %q", out, errs, err, want)
	}
	pod = write(t, "pod.yaml", []byte(podManifest(class, "cpu: 99", "")))
	if _, errs, err := measure(t, "--config", config, "--pod", pod); err != nil ||
		!strings.Contains(errs, "warning: Pod p asks for 99 CPUs and gets 8 vCPUs, which is hypervisor.max_vcpus") {
		t.Errorf("clipped: %q, %v, want a warning", errs, err)
	}
}

func TestMeasurePodRefuses(t *testing.T) {
	fw := firmware(t, 64<<10)
	config, _ := teeConfig(t, "snp", fw, "max_vcpus = 8\nmax_memory_mib = 2048\n")
	open, _ := teeConfig(t, "snp", fw, "")
	plain := write(t, "plain.toml", []byte("[hypervisor]\nplatform = \"none\"\n"))
	for _, tt := range []struct {
		name, manifest string
		args           []string
		want           string
	}{
		{
			"no RuntimeClass", podManifest("", "cpu: 1", ""),
			[]string{"--config", config},
			"no pod to measure: Pod p has no runtimeClassName",
		},
		{
			"another RuntimeClass", podManifest(class, "cpu: 1", ""),
			[]string{"--config", config, "--runtime-class", "kata"},
			`has runtimeClassName "coco-snp", not "kata"`,
		},
		{
			"the host's network", podManifest(class+"hostNetwork: true, ", "cpu: 1", ""),
			[]string{"--config", config},
			"has hostNetwork, which",
		},
		{
			"the host's processes and memory", podManifest(class+"hostPID: true, hostIPC: true, ", "cpu: 1", ""),
			[]string{"--config", config},
			"has hostPID and hostIPC, which",
		},
		{
			"too much memory", podManifest(class, "memory: 4Gi", ""),
			[]string{"--config", config},
			"above hypervisor.max_memory_mib of 2048",
		},
		{"an annotation that is not allowed", podManifest(class, "cpu: 1",
			contract.ConfigPrefix+"hypervisor.kernel_params: x"), []string{"--config", config}, "is not allowed"},
		{
			"bad initdata", podManifest(class, "cpu: 1", contract.KataInitdata+": x"),
			[]string{"--config", config},
			"not base64",
		},
		{"a bad quantity", podManifest(class, "cpu: one", ""), []string{"--config", config}, `"one" is not a quantity`},
		{"a plain class", podManifest(class, "cpu: 1", ""), []string{"--config", plain}, "no launch digest"},
		{
			"a number of vCPUs that depends on the node", podManifest(class, "cpu: 1", ""),
			[]string{"--config", open},
			"max_vcpus is 0",
		},
		{"a size", podManifest(class, "cpu: 1", ""), []string{"--config", config, "--vcpus", "2"}, "goes without --vcpus"},
		{"no configuration", podManifest(class, "cpu: 1", ""), nil, "--pod wants --config"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := measure(t, append(tt.args, "--pod", write(t, "pod.yaml", []byte(tt.manifest)))...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
				t.Errorf("measure = %q, %v, want an error with %q", out, err, tt.want)
			}
		})
	}
}

// newQEMU is one that knows TDX.
func newQEMU(t testing.TB) string {
	t.Helper()
	testvm.Need(t, testvm.QEMU111)
	return testvm.Unpacked("qemu-11.1", "qemu-system-x86_64")
}

// tdxFirmware is an image with TDX metadata and an empty variable store, as edk2 builds it.
func tdxFirmware(t testing.TB) string {
	t.Helper()
	fw := ovmftest.Build(ovmftest.Layout{Size: 4 << 20, Seed: 1, TDX: ovmftest.TDXSections(4 << 20)})
	for i := range 0x84000 {
		fw[i] = 0xff
	}
	copy(fw,
		vectors.Hex(t,
			"000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f5000400800000000005f465648fffe04004800afb8000000028400000000100000"+
				"0000000000000000782cf3aa7b949a43a1802e144ec37792b8ff03005afe000000000000"))
	copy(fw[0x41000:], vectors.Hex(t, "2b29589e687c7d49a0ce6500fd9f1b952caf2c64feffffffe00f000000000000"))
	return write(t, "tdx.fd", fw)
}

func TestMeasureConfigReadsTheTablesOfTheQEMUThatWillRun(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	config, _ := teeConfig(t, "tdx", tdxFirmware(t), fmt.Sprintf("path = %q\nmax_vcpus = 8\n", newQEMU(t)))
	const old, current = "edk2-stable202502+qemu-11.0", "edk2-stable202508+qemu-11.0"
	size := []string{"--config", config, "--vcpus", "2", "--memory", "1G"}
	out, _, err := measure(t, append(size, "--profile", old)...)
	if lines := strings.Fields(out); err != nil || len(lines) != 4 {
		t.Fatalf("measure --config --profile = %q, %v, want four registers", out, err)
	}
	again, _, err := measure(t, append(size, "--profile", old, "--no-cache")...)
	if err != nil || again != out {
		t.Errorf("without the cache = %q, %v, want %q", again, err, out)
	}
	rtmr0 := func(args ...string) string {
		out, _, err := measure(t, append([]string{"--config", config, "--registers", "rtmr0"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	seen := map[string]string{}
	for name, args := range map[string][]string{
		"as it was":      {"--vcpus", "2", "--memory", "1G", "--profile", old},
		"more vCPUs":     {"--vcpus", "3", "--memory", "1G", "--profile", old},
		"more memory":    {"--vcpus", "2", "--memory", "2G", "--profile", old},
		"two interfaces": {"--vcpus", "2", "--memory", "1G", "--profile", old, "--nics", "2"},
		"more bits":      {"--vcpus", "2", "--memory", "1G", "--profile", old, "--phys-bits", "52"},
		"a new firmware": {
			"--vcpus", "2", "--memory", "1G", "--profile", current, "--smbios",
			write(t, "smbios", []byte("table")),
		},
	} {
		v := rtmr0(args...)
		if other, ok := seen[v]; ok {
			t.Errorf("%s and %s have the same RTMR0", name, other)
		}
		seen[v] = name
	}
	if seen[strings.Fields(out)[1]] != "as it was" {
		t.Errorf("RTMR0 alone differs from that among all registers %q: %v", out, seen)
	}
	pod := write(t, "pod.yaml", []byte(podManifest("runtimeClassName: coco-tdx, ", "cpu: 2, memory: 900Mi", "")))
	if got, _, err := measure(t, "--config", config, "--profile", old, "--pod", pod); err != nil || got != out {
		t.Errorf("measure --pod = %q, %v, want %q", got, err, out)
	}
	for want, args := range map[string][]string{
		"SMBIOS table":                {"--vcpus", "2", "--memory", "1G", "--profile", current, "--registers", "rtmr0"},
		"give --vcpus and --memory":   {"--profile", old, "--registers", "rtmr0"},
		"--profile: profile \"\" is ": {"--vcpus", "2", "--memory", "1G", "--registers", "rtmr0"},
	} {
		if out, _, err := measure(t, append([]string{"--config", config}, args...)...); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("measure %v = %q, %v, want an error with %q", args, out, err, want)
		}
	}
}
