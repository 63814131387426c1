// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tdx"
	"github.com/coco-shim/coco/attestation/tdx/tdxtest"
)

// round is one verification. Its parts are right until a case edits them.
type round struct {
	platform   *tdxtest.Platform
	evidence   attestation.Evidence
	collateral attestation.Collateral
	want       tdx.Expectations
}

func newRound(t *testing.T, p *tdxtest.Platform, body tdx.BodyType, parts func(*tdxtest.Parts),
	docs func(*tdxtest.Documents),
) *round {
	t.Helper()
	return &round{
		platform: p, evidence: attestation.Evidence{Type: attestation.TDX, Report: p.Quote(t, body, parts)},
		collateral: p.Collateral(t, docs), want: p.Expectations(),
	}
}

func (r *round) verify() (*attestation.Claims, error) {
	return tdx.Verify(r.evidence, r.collateral, r.want)
}

// refused fails the test unless the error is a failure of this code and field.
func refused(t *testing.T, err error, code attestation.Code, field string) {
	t.Helper()
	f, ok := attestation.FailureOf(err)
	if !ok {
		t.Fatalf("verified, or no failure: %v; want %s of %s", err, code, field)
	}
	if f.Code != code || f.Field != field {
		t.Errorf("%v: code %s of %q, want %s of %q", err, f.Code, f.Field, code, field)
	}
}

func TestQuotesOfEachBodyVerify(t *testing.T) {
	p := tdxtest.New(t, nil)
	for name, body := range map[string]tdx.BodyType{
		"version 4": 0, "5 with TD 1.0": tdx.TD10, "5 with TD 1.5": tdx.TD15,
		"5 with TD 1.5 extended": tdx.TD15Ext,
	} {
		r := newRound(t, p, body, nil, nil)
		c, err := r.verify()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		q, err := tdx.Parse(r.evidence.Report)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.Measurement, q.Body.MRTD) || !bytes.Equal(c.InitData, q.Body.MRConfigID) ||
			!bytes.Equal(c.ReportData, q.Body.ReportData) {
			t.Errorf("%s: claims %v do not hold the quote's fields", name, c)
		}
		if c.Details["tcb_status"] != "UpToDate" || c.Details["collateral_expiration_status"] != "0" ||
			c.Details["is_smt_enabled"] != false ||
			c.Details["fmspc"] != tdxtest.FMSPC || c.Details["tcb_date"] != "2026-01-01T00:00:00Z" {
			t.Errorf("%s: details %v", name, c.Details)
		}
	}
}

func TestExpectationsAreCompared(t *testing.T) {
	p := tdxtest.New(t, nil)
	right := newRound(t, p, tdx.TD15, nil, nil)
	q, err := tdx.Parse(right.evidence.Report)
	if err != nil {
		t.Fatal(err)
	}
	wrong := [][]byte{bytes.Repeat([]byte{1}, 48)}
	for _, tc := range []struct {
		name  string
		edit  func(e *tdx.Expectations)
		code  attestation.Code
		field string
	}{
		{
			"nothing is said", func(e *tdx.Expectations) { e.Expectations = attestation.Expectations{} },
			attestation.CodeExpectation, "report-data",
		},
		{"all is as expected", func(e *tdx.Expectations) {
			e.Expectations = attestation.Expectations{
				ReportData: q.Body.ReportData, InitData: q.Body.MRConfigID, Measurements: [][]byte{q.Body.MRTD},
				Registers: map[string][][]byte{"rtmr0": {q.Body.RTMR[0]}, "rtmr3": {wrong[0], q.Body.RTMR[3]}},
			}
			e.Fields = map[string][][]byte{
				"mr_owner": {q.Body.MROwner}, "mr_seam": {q.Body.MRSeam},
				"mr_owner_config": {q.Body.MROwnerConfig}, "mr_servicetd": {q.Body.Module15.MRServiceTD},
			}
			e.Attributes, e.XFAM = tdx.Bits{Mask: ^uint64(0), Value: 1 << 28}, tdx.Bits{Mask: ^uint64(0), Value: 0x602e7}
			e.TCB = tdx.TCBPolicy{
				MinEvaluation: 18, MinDate: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
				RefuseAdvisories: []string{"INTEL-SA-00001"},
			}
		}, "", ""},
		{"report data", func(e *tdx.Expectations) { e.ReportData = wrong[0] }, attestation.CodeReportData, "report-data"},
		{"initdata", func(e *tdx.Expectations) { e.InitData = wrong[0] }, attestation.CodeInitData, "mr_config_id"},
		{"MRTD", func(e *tdx.Expectations) { e.Measurements = wrong }, attestation.CodeMeasurement, "mr_td"},
		{
			"RTMR1", func(e *tdx.Expectations) { e.Registers = map[string][][]byte{"rtmr1": wrong} }, attestation.CodeRegister,
			"rtmr1",
		},
		{
			"owner", func(e *tdx.Expectations) { e.Fields = map[string][][]byte{"mr_owner": wrong} }, attestation.CodeTDField,
			"mr_owner",
		},
		{
			"unknown field", func(e *tdx.Expectations) { e.Fields = map[string][][]byte{"mr_other": wrong} },
			attestation.CodeTDField, "mr_other",
		},
		{
			"attributes", func(e *tdx.Expectations) { e.Attributes = tdx.Bits{Mask: 1 << 28} }, attestation.CodeTDAttributes,
			"td_attributes",
		},
		{"XFAM", func(e *tdx.Expectations) { e.XFAM = tdx.Bits{Mask: 7, Value: 3} }, attestation.CodeTDAttributes, "xfam"},
		{
			"evaluation", func(e *tdx.Expectations) { e.TCB.MinEvaluation = 19 }, attestation.CodeOutdated,
			"tdx-tcb-info.tcbEvaluationDataNumber",
		},
		{
			"date", func(e *tdx.Expectations) { e.TCB.MinDate = time.Date(2026, 1, 1, 0, 0, 1, 0, time.UTC) },
			attestation.CodeOutdated, "tcb_date",
		},
		{"event log", func(e *tdx.Expectations) { e.NeedEventLog = true }, attestation.CodeEventLog, "event_log"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := *right
			tc.edit(&r.want)
			_, err := r.verify()
			if tc.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, tc.code, tc.field)
		})
	}
}

// The evaluation number of the quoting enclave's identity counts as well as that of the TCB info.
func TestBothEvaluationNumbersCount(t *testing.T) {
	p := tdxtest.New(t, nil)
	r := newRound(t, p, 0, nil, func(d *tdxtest.Documents) { d.TCBInfo["tcbEvaluationDataNumber"] = 20 })
	r.want.TCB.MinEvaluation = 19
	_, err := r.verify()
	refused(t, err, attestation.CodeOutdated, "tdx-qe-identity.tcbEvaluationDataNumber")
}

func TestStatusesConverge(t *testing.T) {
	p := tdxtest.New(t, nil)
	for _, tc := range []struct {
		platform, module, qe, want string
	}{
		{"UpToDate", "UpToDate", "UpToDate", "UpToDate"},
		{"SWHardeningNeeded", "UpToDate", "UpToDate", "SWHardeningNeeded"},
		{"ConfigurationNeeded", "UpToDate", "UpToDate", "ConfigurationNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "UpToDate", "UpToDate", "ConfigurationAndSWHardeningNeeded"},
		{"UpToDate", "OutOfDate", "UpToDate", "OutOfDate"},
		{"SWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDate"},
		{"ConfigurationNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDateConfigurationNeeded"},
		{"OutOfDateConfigurationNeeded", "UpToDate", "UpToDate", "OutOfDateConfigurationNeeded"},
	} {
		r := newRound(t, p, 0, nil, func(d *tdxtest.Documents) {
			d.TCBInfo["tcbLevels"] = []any{tdxtest.Level(5, 13, tc.platform, "INTEL-SA-2", "INTEL-SA-1")}
			d.TCBInfo["tdxModuleIdentities"].([]any)[1].(map[string]any)["tcbLevels"] = []any{tdxtest.ModuleLevel(6, tc.module,
				"INTEL-SA-3")}
			d.QEIdentity["tcbLevels"] = []any{tdxtest.ModuleLevel(8, tc.qe, "INTEL-SA-1")}
		})
		if tc.want != "UpToDate" {
			_, err := r.verify()
			refused(t, err, attestation.CodeTCBStatus, "tcb_status")
		}
		r.want.TCB.Statuses = []tdx.Status{tdx.Status(tc.want)}
		c, err := r.verify()
		if err != nil {
			t.Errorf("%v: %v", tc, err)
			continue
		}
		if diff := cmp.Diff([]any{tc.want, []any{"INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3"}},
			[]any{c.Details["tcb_status"], c.Details["advisory_ids"]}); diff != "" {
			t.Errorf("%v: %s", tc, diff)
		}
		r.want.TCB.RefuseAdvisories = []string{"INTEL-SA-4", "intel-sa-3"}
		_, err = r.verify()
		refused(t, err, attestation.CodeAdvisory, "advisory_ids")
	}
}

func TestRevokedIsNeverAccepted(t *testing.T) {
	r := newRound(t, tdxtest.New(t, nil), 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN+2] = 2 }, nil)
	r.want.TCB.Statuses = []tdx.Status{tdx.Revoked}
	_, err := r.verify()
	refused(t, err, attestation.CodeRevoked, "tcb_status")
}

// From version 1 on a module has levels of its own, and the first two bytes are not compared with the platform's
// levels.
func TestModulesLevelsAreNotThePlatforms(t *testing.T) {
	p := tdxtest.New(t, nil)
	edit := func(d *tdxtest.Documents) {
		l := tdxtest.Level(5, 13, "UpToDate")
		l["tcb"].(map[string]any)["tdxtcbcomponents"].([]any)[0] = map[string]any{"svn": 9}
		d.TCBInfo["tcbLevels"] = []any{l}
	}
	if _, err := newRound(t, p, 0, nil, edit).verify(); err != nil {
		t.Error(err)
	}
	_, err := newRound(t, p, 0, func(q *tdxtest.Parts) { q.Body[tdxtest.TCBSVN+1] = 0 }, edit).verify()
	refused(t, err, attestation.CodeTCBStatus, "tcb_svn")
	c, err := newRound(t, p, 0, func(q *tdxtest.Parts) { copy(q.Body[tdxtest.TCBSVN:], []byte{9, 0}) }, edit).verify()
	if err != nil || c.Details["tdx_module_tcb_status"] != nil {
		t.Errorf("a module 1.0: %v, %v", c, err)
	}
}

func TestDebugAndMigrationOnlyWhenSaid(t *testing.T) {
	p := tdxtest.New(t, nil)
	r := newRound(t, p, 0, func(q *tdxtest.Parts) { put64(q.Body, tdxtest.Attributes, 1|1<<29) }, nil)
	r.want.AllowDebug = true
	_, err := r.verify()
	refused(t, err, attestation.CodeMigration, "td_attributes")
	r.want.AllowMigration = true
	c, err := r.verify()
	if err != nil {
		t.Fatal(err)
	}
	a := c.Details["td_attributes"].(map[string]any)
	if a["debug"] != true || a["migratable"] != true || a["septve_disable"] != false {
		t.Errorf("attributes %v", a)
	}
}

func TestOtherEvidenceIsRefused(t *testing.T) {
	r := newRound(t, tdxtest.New(t, nil), 0, nil, nil)
	r.evidence.Type = attestation.SNP
	_, err := r.verify()
	refused(t, err, attestation.CodeUnsupported, "type")
}

func TestIntelsRootIsTheDefault(t *testing.T) {
	r := newRound(t, tdxtest.New(t, nil), 0, nil, nil)
	r.want.Root = nil
	_, err := r.verify()
	refused(t, err, attestation.CodeChain, "pck_certificate")
}

// A document may hold more than this package reads, but not less.
func TestClaimsAreJSON(t *testing.T) {
	c, err := newRound(t, tdxtest.New(t, nil), tdx.TD15, nil, nil).verify()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil || !json.Valid(text) {
		t.Fatal(err)
	}
	var back any
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Details, back.(map[string]any)["details"]); diff != "" {
		t.Errorf("details change by JSON: %s", diff)
	}
}

func TestRequestNamesTheDocuments(t *testing.T) {
	p := tdxtest.New(t, nil)
	got, err := tdx.Requests(attestation.Evidence{Type: attestation.TDX, Report: p.Quote(t, tdx.TD15, nil)})
	if err != nil {
		t.Fatal(err)
	}
	var names, urls []string
	for _, r := range got {
		names, urls = append(names, string(r.Kind)+" "+r.Name), append(urls, r.URL)
	}
	want := []string{
		"tdx-tcb-info tdx/tcb-info-90c06f000000.json", "tdx-qe-identity tdx/qe-identity.json",
		"intel-pck-crl tdx/pck-platform.crl", "intel-root-crl tdx/root.crl",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		"https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=90c06f000000",
		"https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity",
		"https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
		"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
	}, urls); diff != "" {
		t.Error(diff)
	}
	if _, err := tdx.Requests(attestation.Evidence{Type: attestation.TDX, Report: []byte("no quote")}); err == nil {
		t.Error("Request reads bytes that are no quote")
	}
}

// A TD that is bound to a service TD passes when the caller names that one, or accepts migration.
func TestServiceTDsOnlyWhenSaid(t *testing.T) {
	service := bytes.Repeat([]byte{7}, 48)
	r := newRound(t, tdxtest.New(t, nil), tdx.TD15,
		func(q *tdxtest.Parts) { copy(q.Body[tdxtest.MRServiceTD:], service) }, nil)
	_, err := r.verify()
	refused(t, err, attestation.CodeMigration, "mr_servicetd")
	r.want.Fields = map[string][][]byte{"mr_servicetd": {service}}
	if _, err := r.verify(); err != nil {
		t.Error(err)
	}
	r.want.Fields = map[string][][]byte{"mr_servicetd": {make([]byte, 48)}}
	_, err = r.verify()
	refused(t, err, attestation.CodeTDField, "mr_servicetd")
	r.want.Fields, r.want.AllowMigration = nil, true
	if _, err := r.verify(); err != nil {
		t.Error(err)
	}
}
