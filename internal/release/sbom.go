// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const guestDir = "share/coco/guest"

// manifest is what a release needs of the guest image's own.
type manifest struct {
	Cmdline   string `json:"cmdline"`
	Suite     string `json:"suite"`
	Artifacts []struct {
		Name   string `json:"name"`
		SHA256 string `json:"sha256"`
	} `json:"artifacts"`
	Packages []struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		SHA256  string `json:"sha256"`
	} `json:"packages"`
}

func readManifest(in input) (manifest, error) {
	var m manifest
	text, err := os.ReadFile(filepath.Join(in.prefix, guestDir, "manifest.json"))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(text, &m)
}

// Names of members are those of SPDX 2.3, JSON.
type (
	document struct {
		Version       string         `json:"spdxVersion"`
		License       string         `json:"dataLicense"`
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      creation       `json:"creationInfo"`
		Packages      []part         `json:"packages"`
		Relationships []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	part struct {
		ID        string      `json:"SPDXID"`
		Name      string      `json:"name"`
		Version   string      `json:"versionInfo"`
		Location  string      `json:"downloadLocation"`
		Analyzed  bool        `json:"filesAnalyzed"`
		Checksums []checksum  `json:"checksums,omitempty"`
		Refs      []reference `json:"externalRefs,omitempty"`
	}
	checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	reference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// listParts lists the programs with the Go modules that each is linked from, and the Debian packages of the guest.
func listParts(in input) ([]byte, error) {
	d := document{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "coco-" + in.version,
		Namespace: "https://github.com/coco-shim/coco/releases/" + in.version,
		Creation: creation{
			Created:  time.Unix(in.epoch, 0).UTC().Format(time.RFC3339),
			Creators: []string{"Tool: coco-release"},
		},
	}
	d.add("SPDXRef-DOCUMENT", "DESCRIBES", part{ID: "SPDXRef-coco", Name: "coco", Version: in.version})
	programs := map[string]string{"coco-agent": in.agent}
	for _, name := range []string{"coco", "coco-oci", "containerd-shim-coco-v2"} {
		programs[name] = filepath.Join(in.prefix, "bin", name)
	}
	for _, name := range sorted(programs) {
		if err := d.addProgram(name, programs[name], in.version); err != nil {
			return nil, err
		}
	}
	m, err := readManifest(in)
	if err != nil {
		return nil, err
	}
	for _, p := range m.Packages {
		d.add("SPDXRef-coco", "CONTAINS", part{
			ID: id("deb", p.Name, p.Version), Name: p.Name, Version: p.Version,
			Checksums: []checksum{{"SHA256", p.SHA256}},
			Refs: []reference{{
				"PACKAGE-MANAGER", "purl", "pkg:deb/debian/" + p.Name + "@" + quote.Replace(p.Version) +
					"?distro=" + m.Suite,
			}},
		})
	}
	text, err := json.MarshalIndent(d, "", "  ")
	return append(text, '\n'), err
}

// quote writes a version as purl wants it.
var quote = strings.NewReplacer(":", "%3A", "+", "%2B")

// addProgram adds a program of ours and what the compiler recorded in it.
func (d *document) addProgram(name, path, version string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	self := "SPDXRef-program-" + name
	d.add("SPDXRef-coco", "CONTAINS", part{
		ID: self, Name: name, Version: version, Checksums: []checksum{{"SHA256", digest(text)}},
	})
	d.add(self, "DEPENDS_ON", golang("stdlib", strings.TrimPrefix(info.GoVersion, "go")))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		d.add(self, "DEPENDS_ON", golang(m.Path, m.Version))
	}
	return nil
}

func golang(path, version string) part {
	return part{
		ID: id("go", path, version), Name: path, Version: version,
		Refs: []reference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}},
	}
}

// add adds a part, unless it is there, and its relation.
func (d *document) add(from, relation string, p part) {
	p.Location = "NOASSERTION"
	known := false
	for _, q := range d.Packages {
		known = known || q.ID == p.ID
	}
	if !known {
		d.Packages = append(d.Packages, p)
	}
	d.Relationships = append(d.Relationships, relationship{from, relation, p.ID})
}

// id makes an identifier of the characters that SPDX allows.
func id(words ...string) string {
	text := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, strings.Join(words, "-"))
	return "SPDXRef-" + text
}
