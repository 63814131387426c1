// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package archive checks a Debian archive by its signed Release file, and holds the settings under which apt may talk
// to it. apt checks signatures and digests, but only warns when a mirror answers with another suite than the one that
// was asked for, or with an old state of it. Package guest runs apt.
package archive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Release is what a Release file says of itself.
type Release struct {
	Origin, Label, Suite, Codename string
	Date, ValidUntil               time.Time // ValidUntil is zero where the archive states none
}

const (
	signedBegin    = "-----BEGIN PGP SIGNED MESSAGE-----"
	signatureBegin = "-----BEGIN PGP SIGNATURE-----"
	signatureEnd   = "-----END PGP SIGNATURE-----"
	dateForm       = "Mon, 2 Jan 2006 15:04:05 MST" // RFC 5322 with a zone's name, which is always UTC
)

// ParseRelease reads an InRelease file whose signature apt has checked. Text outside the signed part is refused.
func ParseRelease(b []byte) (Release, error) {
	body, err := signedPart(b)
	if err != nil {
		return Release{}, fmt.Errorf("InRelease file: %w", err)
	}
	fields := map[string]string{}
	for line := range strings.SplitSeq(string(body), "\n") {
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, " ") { // a continuation, such as the list of digests
			continue
		}
		if _, twice := fields[key]; twice {
			return Release{}, fmt.Errorf("InRelease file: field %s is there twice", key)
		}
		fields[key] = strings.TrimSpace(value)
	}
	r := Release{Origin: fields["Origin"], Label: fields["Label"], Suite: fields["Suite"], Codename: fields["Codename"]}
	if r.Date, err = time.Parse(dateForm, fields["Date"]); err != nil {
		return Release{}, fmt.Errorf("InRelease file: Date %q is no date: %w", fields["Date"], err)
	}
	if until, ok := fields["Valid-Until"]; ok {
		if r.ValidUntil, err = time.Parse(dateForm, until); err != nil {
			return Release{}, fmt.Errorf("InRelease file: Valid-Until %q is no date: %w", until, err)
		}
	}
	return r, nil
}

// signedPart returns the text between the header of a clear-signed message and its signature (RFC 9580, section 7).
func signedPart(b []byte) ([]byte, error) {
	var body bytes.Buffer
	const (
		start = iota
		header
		text
		signature
		end
	)
	state := start
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := strings.TrimRight(sc.Text(), " \t\r")
		switch {
		case state == start && line == signedBegin:
			state = header
		case state == header && line == "":
			state = text
		case state == header && strings.HasPrefix(line, "Hash: "):
		case state == text && line == signatureBegin:
			state = signature
		case state == text && strings.HasPrefix(line, "-"):
			return nil, errors.New("its text has a line that begins with a dash")
		case state == text:
			body.WriteString(line + "\n")
		case state == signature && line == signatureEnd:
			state = end
		case state == signature:
		case state == end && line == "":
		default:
			return nil, errors.New("there is text outside the signed part")
		}
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if state != end {
		return nil, errors.New("it is not clear-signed, or cut short")
	}
	return body.Bytes(), nil
}

// Expected is what a Release file must say.
type Expected struct {
	Codename string // such as trixie or trixie-security
	Label    string // LabelMain or LabelSecurity
	Now      time.Time
	// MaxAge bounds the age of Date and takes the place of Valid-Until. Zero: Valid-Until counts, and where there
	// is none, DefaultMaxAge.
	MaxAge time.Duration
	// Snapshot is the time of a state of the archive that was asked for: no age is too old then, but nothing may be newer.
	Snapshot time.Time
	// Pinned says that all packages come with their digests: age does not matter then.
	Pinned bool
}

// The labels of Debian's archives, and the origin of both.
const (
	Origin        = "Debian"
	LabelMain     = "Debian"
	LabelSecurity = "Debian-Security"
)

// DefaultMaxAge bounds the age of a Release file without Valid-Until. Debian's stable release has none; its point
// releases come every two to three months. The archive of security updates does have one, a week.
const DefaultMaxAge = 400 * 24 * time.Hour

// skew is how far the clocks of builder and archive may be apart.
const skew = 24 * time.Hour

// Check returns all errors by which a Release file is not the requested one.
func (r Release) Check(e Expected) error {
	var errs []error
	if r.Origin != Origin || r.Label != e.Label {
		errs = append(errs, fmt.Errorf("it is signed as origin %q, label %q, where %q, %q is expected", r.Origin, r.Label,
			Origin, e.Label))
	}
	if r.Codename != e.Codename {
		errs = append(errs, fmt.Errorf("it is signed as the release %q (suite %q), and %q was asked for", r.Codename,
			r.Suite, e.Codename))
	}
	return errors.Join(append(errs, r.checkDate(e))...)
}

func (r Release) checkDate(e Expected) error {
	day := func(t time.Time) string { return t.UTC().Format(time.DateTime + " UTC") }
	switch age := e.Now.Sub(r.Date); {
	case age < -skew:
		return fmt.Errorf("it is dated %s, which is yet to come: this machine's clock says %s", day(r.Date), day(e.Now))
	case !e.Snapshot.IsZero():
		if r.Date.After(e.Snapshot) {
			return fmt.Errorf("it is dated %s, after the state of %s that was asked for", day(r.Date), day(e.Snapshot))
		}
	case e.Pinned:
	case e.MaxAge > 0:
		if age > e.MaxAge {
			return fmt.Errorf("it is dated %s, longer ago than %s", day(r.Date), e.MaxAge)
		}
	case !r.ValidUntil.IsZero():
		if e.Now.After(r.ValidUntil) {
			return fmt.Errorf("it was valid until %s: the mirror holds an old state, in which security updates are missing "+
				"(another --mirror, or --max-release-age if this is known)", day(r.ValidUntil))
		}
	case age > DefaultMaxAge:
		return fmt.Errorf("it is dated %s, more than %d days ago: the mirror holds an old state (another --mirror, or "+
			"--max-release-age if this is known)", day(r.Date), DefaultMaxAge/(24*time.Hour))
	}
	return nil
}
