"""The CSV on the desk: a spreadsheet sorts it the way the article does."""
import shutil
import subprocess
from xml.sax.saxutils import escape

import pytest

from nights import read_csv, up

A, B, C, D = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
TO = ("--email-to", "root@example.net")
OFFICE = shutil.which("soffice")
SORT = """
Sub Sort(source, target)
  Dim how_read(2) As New com.sun.star.beans.PropertyValue
  how_read(0).Name = "Hidden" : how_read(0).Value = True
  how_read(1).Name = "FilterName" : how_read(1).Value = "Text - txt - csv (StarCalc)"
  how_read(2).Name = "FilterOptions" : how_read(2).Value = "44,34,76,1"
  book = StarDesktop.loadComponentFromURL(source, "_blank", 0, how_read())
  cursor = book.Sheets.getByIndex(0).createCursor()
  cursor.gotoEndOfUsedArea(True)
  Dim by(2) As New com.sun.star.table.TableSortField
  by(0).Field = 3 : by(0).IsAscending = True
  by(1).Field = 4 : by(1).IsAscending = True
  by(2).Field = 1 : by(2).IsAscending = True
  Dim how_sorted(1) As New com.sun.star.beans.PropertyValue
  how_sorted(0).Name = "SortFields" : how_sorted(0).Value = by()
  how_sorted(1).Name = "ContainsHeader" : how_sorted(1).Value = True
  cursor.sort(how_sorted())
  Dim how_written(0) As New com.sun.star.beans.PropertyValue
  how_written(0).Name = "FilterName" : how_written(0).Value = "Text - txt - csv (StarCalc)"
  book.storeToURL(target, how_written())
  book.close(True)
End Sub"""
LIBRARY = """<?xml version="1.0"?>
<!DOCTYPE library:library PUBLIC "-//OpenOffice.org//DTD OfficeDocument 1.0//EN" "library.dtd">
<library:library xmlns:library="http://openoffice.org/2000/library" library:name="Standard" library:readonly="false"
 library:passwordprotected="false"><library:element library:name="Desk"/></library:library>"""
MODULE = """<?xml version="1.0"?>
<!DOCTYPE script:module PUBLIC "-//OpenOffice.org//DTD OfficeDocument 1.0//EN" "module.dtd">
<script:module xmlns:script="http://openoffice.org/2000/script" script:name="Desk" script:language="StarBasic">{}
</script:module>"""


@pytest.fixture
def sent(fake):
    return fake("sendmail")


@pytest.mark.skipif(not OFFICE, reason="soffice (Debian: libreoffice-calc) is not installed")
def test_libreoffice_sorts_by_number(nights, sent, tmp_path):
    """By port, protocol and host name, as the article does it."""
    names = ["b", "a", "c", "d"]
    night = nights.audit({address: up(9100, 80, (80, "udp"), 443, (161, "udp"), names=[f"{name}.example.net"])
                          for address, name in zip((A, B, C, D), names)}, *TO,
                         scanned={"tcp": "80,443,9100", "udp": "80,161"})
    office = [OFFICE, f"-env:UserInstallation=file://{tmp_path}/office", "--headless", "--norestore"]
    subprocess.run([*office, "--terminate_after_init"], capture_output=True, timeout=110)    # makes the profile
    basic = tmp_path / "office" / "user" / "basic" / "Standard"
    (basic / "script.xlb").write_text(LIBRARY)
    (basic / "Desk.xba").write_text(MODULE.format(escape(SORT)))
    macro = f'macro:///Standard.Desk.Sort("file://{night.folder}/scan_report.csv","file://{tmp_path}/sorted.csv")'
    done = subprocess.run([*office, macro], capture_output=True, text=True, timeout=110)
    assert (tmp_path / "sorted.csv").exists(), done.stderr
    rows = read_csv((tmp_path / "sorted.csv").read_text(encoding="utf-8"))
    found = [(int(row["Port"]), row["Protocol"], row["Hostname"]) for row in rows]
    assert len(found) == 20 and found == sorted(found) and [row["Port"] for row in rows[:5]] == ["80"] * 5
