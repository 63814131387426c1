// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
)

// Finding is one answer of Check.
type Finding struct {
	What    string `json:"what"`
	Problem string `json:"problem,omitempty"` // "": it is as it should be
}

// at returns where a version's files are on the host.
func (n *Node) at(version string) string {
	return filepath.Join("/", n.Disk.Root, versionDir(n.Prefix, version))
}

// CurrentSource returns the current version as a source of an installation, and its release.
func (n *Node) CurrentSource(r *Record) (dir, release string, err error) {
	v, err := readVersion(n.at(r.Current))
	return n.at(r.Current), v.Release, err
}

// Check compares what is on the host with what was installed. It reads every file and changes nothing.
func (n *Node) Check(ctx context.Context) ([]Finding, error) {
	s, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	r, err := n.Installed()
	if err != nil {
		return nil, err
	}
	if r == nil {
		return []Finding{{"installation", "coco is not installed in " + n.Prefix}}, nil
	}
	interrupted := Finding{What: "journal"}
	if s.Interrupted {
		interrupted.Problem = "a run was interrupted; the next install or uninstall undoes or finishes it"
	}
	findings := []Finding{interrupted}
	for _, name := range r.Versions {
		findings = append(findings, Finding{"version " + name, text(n.checkVersion(name))})
	}
	for _, path := range r.Links {
		findings = append(findings, Finding{"link " + path, text(n.checkLink(path, r.Current))})
	}
	for _, e := range s.Engines {
		f := Finding{What: strings.TrimSpace(e.Engine + " " + e.Version), Problem: e.Problem}
		var missing []string
		for _, m := range s.Missing {
			if name, ok := strings.CutPrefix(m, e.Engine+": "); ok {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 && f.Problem == "" {
			f.Problem = "has not loaded " + strings.Join(missing, ", ") + "; run coco node install again"
		}
		if slices.Contains(r.Engines, e.Engine) {
			findings = append(findings, f)
		}
	}
	return findings, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// checkVersion reads a version. Its name is the hash of its list, so a list that was changed is found too.
func (n *Node) checkVersion(name string) error {
	v, err := readVersion(n.at(name))
	if err != nil {
		return err
	}
	if hash(v.Files) != name {
		return errors.New("its list of files is not the one that it was installed with")
	}
	return v.Check(n.at(name))
}

func (n *Node) checkLink(path, current string) error {
	f, err := n.Disk.Read(path)
	if err != nil {
		return err
	}
	if f == nil || !strings.HasPrefix(f.Link, versionDir(n.Prefix, current)+"/") {
		return errors.New("it does not lead to the current version; run coco node install again")
	}
	return nil
}
