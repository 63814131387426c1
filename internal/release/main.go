// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command release makes what is published of a version, from what make stage has built: an archive, a list of all that
// is in it (SBOM), the reference values of its guest image, and checksums of the three. The same input gives the same
// bytes, wherever it is built: names are sorted, and all times are that of the commit.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// input is what a release is made of.
type input struct {
	prefix   string // what make stage has made
	agent    string // the program that is in the guest image
	root     string // of the repository, for the licence and the pages
	out      string
	version  string
	epoch    int64             // seconds since 1970: the time of everything
	firmware map[string]string // platform → file, for reference values
	key      string            // of ssh-keygen, to sign with
}

func main() {
	var in input
	var snp, tdx string
	flag.StringVar(&in.prefix, "prefix", "dist/prefix", "what make stage has made")
	flag.StringVar(&in.agent, "agent", "bin/coco-agent", "the agent of the guest image")
	flag.StringVar(&in.root, "root", ".", "the repository")
	flag.StringVar(&in.out, "out", "dist/release", "directory to write to; it is emptied first")
	flag.StringVar(&in.version, "version", "", "version of the release")
	flag.Int64Var(&in.epoch, "epoch", 0, "time of the commit, in seconds since 1970")
	flag.StringVar(&snp, "firmware-snp", "", "OVMF for SEV-SNP, for reference values")
	flag.StringVar(&tdx, "firmware-tdx", "", "OVMF for TDX, for reference values")
	flag.StringVar(&in.key, "key", "", "private key of ssh-keygen that signs the checksums")
	flag.Parse()
	in.firmware = map[string]string{"snp": snp, "tdx": tdx}
	if err := run(context.Background(), in); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// run makes all files.
func run(ctx context.Context, in input) error {
	if in.version == "" || in.epoch <= 0 {
		return errors.New("-version and -epoch are needed")
	}
	if err := os.RemoveAll(in.out); err != nil {
		return err
	}
	if err := os.MkdirAll(in.out, 0o755); err != nil {
		return err
	}
	name := "coco-" + in.version + "-linux-amd64"
	archive, err := pack(in, name)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	sbom, err := listParts(in)
	if err != nil {
		return fmt.Errorf("SBOM: %w", err)
	}
	values, err := referenceValues(ctx, in)
	if err != nil {
		return fmt.Errorf("reference values: %w", err)
	}
	var sums strings.Builder
	for _, f := range []struct {
		name string
		text []byte
	}{
		{name + ".reference-values.json", values}, {name + ".spdx.json", sbom}, {name + ".tar.gz", archive},
	} {
		if err := os.WriteFile(filepath.Join(in.out, f.name), f.text, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%s  %s\n", digest(f.text), f.name)
	}
	list := filepath.Join(in.out, "SHA256SUMS")
	if err := os.WriteFile(list, []byte(sums.String()), 0o644); err != nil {
		return err
	}
	if in.key == "" {
		return nil
	}
	sign := exec.CommandContext(ctx, "ssh-keygen", "-Y", "sign", "-f", in.key, "-n", "coco-release", list)
	if out, err := sign.CombinedOutput(); err != nil {
		return fmt.Errorf("sign %s: %w: %s", list, err, bytes.TrimSpace(out))
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// pack makes the archive: programs, guest image, examples, the licence and the page that says how to install.
func pack(in input, name string) ([]byte, error) {
	files := map[string]string{ // name in the archive → file
		"LICENSE": filepath.Join(in.root, "LICENSE"), "INSTALL.md": filepath.Join(in.root, "docs/install.md"),
	}
	for _, dir := range []string{"bin", "share"} {
		err := filepath.WalkDir(filepath.Join(in.prefix, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				rel, rerr := filepath.Rel(in.prefix, path)
				files[rel], err = path, rerr
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(zip)
	for _, n := range sorted(files) {
		text, err := os.ReadFile(files[n])
		if err != nil {
			return nil, err
		}
		mode := int64(0o644)
		if strings.HasPrefix(n, "bin/") {
			mode = 0o755
		}
		err = w.WriteHeader(&tar.Header{
			Name: name + "/" + n, Mode: mode, Size: int64(len(text)), ModTime: time.Unix(in.epoch, 0), Format: tar.FormatPAX,
		})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// measured are the launch digests of one platform with one firmware.
type measured struct {
	Platform string          `json:"platform"`
	Firmware string          `json:"firmware"` // base name
	SHA256   string          `json:"firmware_sha256"`
	Digests  json.RawMessage `json:"digests"` // what coco measure --config FILE --json prints
}

// values are the file of reference values.
type values struct {
	Version   string            `json:"version"`
	Guest     map[string]string `json:"guest"` // SHA-256 of the files of the guest image
	Cmdline   string            `json:"cmdline"`
	Platforms []measured        `json:"platforms"` // none: no firmware was named
}

// referenceValues measures the released image with the released program.
func referenceValues(ctx context.Context, in input) ([]byte, error) {
	m, err := readManifest(in)
	if err != nil {
		return nil, err
	}
	v := values{Version: in.version, Guest: map[string]string{}, Cmdline: m.Cmdline, Platforms: []measured{}}
	for _, a := range m.Artifacts {
		text, err := os.ReadFile(filepath.Join(in.prefix, guestDir, a.Name))
		if err != nil {
			return nil, err
		}
		if digest(text) != a.SHA256 {
			return nil, fmt.Errorf("%s is not the file that its manifest describes", a.Name)
		}
		v.Guest[a.Name] = a.SHA256
	}
	for _, platform := range sorted(in.firmware) {
		if in.firmware[platform] == "" {
			continue
		}
		one, err := measure(ctx, in, platform)
		if err != nil {
			return nil, err
		}
		v.Platforms = append(v.Platforms, one)
	}
	text, err := json.MarshalIndent(v, "", "  ")
	return append(text, '\n'), err
}

// measure asks the released program for the digests of the example configuration, with a firmware.
func measure(ctx context.Context, in input, platform string) (measured, error) {
	firmware, err := filepath.Abs(in.firmware[platform])
	if err != nil {
		return measured{}, err
	}
	text, err := os.ReadFile(firmware)
	if err != nil {
		return measured{}, err
	}
	dir, err := os.MkdirTemp("", "coco-release-")
	if err != nil {
		return measured{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	example, err := os.ReadFile(filepath.Join(in.prefix, "share/coco/configs/config-qemu-"+platform+".toml"))
	if err != nil {
		return measured{}, err
	}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, example, 0o600); err != nil {
		return measured{}, err
	}
	if err := os.Mkdir(filepath.Join(dir, "config.d"), 0o700); err != nil {
		return measured{}, err
	}
	drop := fmt.Sprintf("[hypervisor]\nfirmware = %q\n", firmware)
	if err := os.WriteFile(filepath.Join(dir, "config.d", "firmware.toml"), []byte(drop), 0o600); err != nil {
		return measured{}, err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(in.prefix, "bin/coco"), "measure", "--config", config, "--json")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return measured{}, fmt.Errorf("coco measure for %s: %w: %s", platform, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, out); err != nil {
		return measured{}, err
	}
	return measured{platform, filepath.Base(firmware), digest(text), compact.Bytes()}, nil
}
