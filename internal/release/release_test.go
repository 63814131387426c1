// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fixture makes what make stage makes, in a directory of its own: this test's own program stands for the three, and the
// measuring one is a script.
func fixture(t *testing.T, dir string) input {
	t.Helper()
	exe, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	in := input{
		prefix: filepath.Join(dir, "p"), agent: filepath.Join(dir, "agent"), root: filepath.Join(dir, "r"),
		out: filepath.Join(dir, "out"), version: "1.0", epoch: 1_700_000_000, firmware: map[string]string{},
	}
	for path, text := range map[string][]byte{
		in.agent:                    exe,
		in.prefix + "/bin/coco":     exe,
		in.prefix + "/bin/coco-oci": exe,

		in.prefix + "/bin/containerd-shim-coco-v2": exe,
		in.prefix + "/share/coco/guest/initrd.img": []byte("initrd"),

		in.prefix + "/share/coco/guest/manifest.json": []byte(`{"cmdline": "quiet", "suite": "trixie",
			"artifacts": [{"name": "initrd.img", "sha256": "` + digest([]byte("initrd")) + `"}],
			"packages": [{"name": "crun", "version": "1:1.21+b1", "sha256": "aa"}]}`),
		in.root + "/LICENSE": []byte("licence"), in.root + "/docs/install.md": []byte("page"),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

func outputs(t *testing.T, in input) map[string]string {
	t.Helper()
	if err := run(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(in.out, "*"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(f)] = string(text)
	}
	return all
}

func TestTwoFoldersGiveTheSameBytes(t *testing.T) {
	one := outputs(t, fixture(t, filepath.Join(t.TempDir(), "one")))
	two := outputs(t, fixture(t, filepath.Join(t.TempDir(), "another", "place")))
	if !maps.Equal(one, two) {
		t.Error("two releases of the same input differ")
	}
	const name = "coco-1.0-linux-amd64"
	if got := slices.Sorted(maps.Keys(one)); !slices.Equal(got, []string{
		"SHA256SUMS", name + ".reference-values.json", name + ".spdx.json", name + ".tar.gz",
	}) {
		t.Fatalf("files %v", got)
	}
	for line := range strings.Lines(one["SHA256SUMS"]) {
		sum, file, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if digest([]byte(one[file])) != sum {
			t.Errorf("checksum of %s", file)
		}
	}
	var names []string
	zip, err := gzip.NewReader(strings.NewReader(one[name+".tar.gz"]))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(h.Name, name+"/"))
	}
	if !slices.IsSorted(names) || !slices.Contains(names, "bin/coco") ||
		!slices.Contains(names, "share/coco/guest/manifest.json") {
		t.Errorf("archive has %v", names)
	}
	sbom := one[name+".spdx.json"]
	for _, want := range []string{
		`"pkg:deb/debian/crun@1%3A1.21%2Bb1?distro=trixie"`, `"SPDXRef-program-coco-agent"`, `pkg:golang/stdlib@1.`,
		`"created": "2023-11-14T22:13:20Z"`,
	} {
		if !json.Valid([]byte(sbom)) || !strings.Contains(sbom, want) {
			t.Errorf("SBOM without %s", want)
		}
	}
}

func TestReleasesThatAreRefused(t *testing.T) {
	in := fixture(t, t.TempDir())
	if err := os.WriteFile(filepath.Join(in.prefix, guestDir, "initrd.img"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), in); err == nil || !strings.Contains(err.Error(), "initrd.img is not the file") {
		t.Errorf("an image that is not its manifest's: %v", err)
	}
	in.version = ""
	if err := run(t.Context(), in); err == nil {
		t.Error("a release without a version")
	}
}

// The values are what the released program says of the example configuration with the firmware.
func TestReferenceValuesOfAFirmware(t *testing.T) {
	in := fixture(t, t.TempDir())
	script := "#!/bin/sh\ncat $3 $(dirname $3)/config.d/*.toml >&2\necho '{ \"1\" : \"abcd\" }'\n"
	if err := os.WriteFile(filepath.Join(in.prefix, "bin/coco"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	in.firmware["snp"] = filepath.Join(in.root, "LICENSE")
	config := filepath.Join(in.prefix, "share/coco/configs/config-qemu-snp.toml")
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("[hypervisor]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := referenceValues(t.Context(), in)
	var v values
	if jerr := json.Unmarshal(text, &v); err != nil || jerr != nil {
		t.Fatal(err, jerr)
	}
	var digests bytes.Buffer
	if err := json.Compact(&digests, v.Platforms[0].Digests); err != nil {
		t.Fatal(err)
	}
	if v.Platforms[0].SHA256 != digest([]byte("licence")) || digests.String() != `{"1":"abcd"}` || v.Cmdline != "quiet" {
		t.Errorf("values %s", text)
	}
}

func TestTheChecksumsAreSigned(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	in := fixture(t, dir)
	in.key = filepath.Join(dir, "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", in.key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sums := outputs(t, in)["SHA256SUMS"]
	public, err := os.ReadFile(in.key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	allowed := filepath.Join(dir, "allowed")
	if err := os.WriteFile(allowed, append([]byte("coco "), public...), 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func(text string) error {
		cmd := exec.Command("ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "coco", "-n", "coco-release",
			"-s", filepath.Join(in.out, "SHA256SUMS.sig"))
		cmd.Stdin = strings.NewReader(text)
		return cmd.Run()
	}
	if err := verify(sums); err != nil {
		t.Errorf("the signature: %v", err)
	}
	if verify(sums+"x") == nil {
		t.Error("the signature fits other checksums")
	}
}
